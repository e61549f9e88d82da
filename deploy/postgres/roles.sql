-- Two roles, as in production: outboxd reads the write-ahead log, the application inserts.
-- `outboxd migrate --relay-role outboxd --application-role orders` gives them everything else they need.
CREATE ROLE outboxd LOGIN REPLICATION PASSWORD 'outboxd';
CREATE ROLE orders LOGIN PASSWORD 'orders';
