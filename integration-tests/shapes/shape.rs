//! A shape: what a table, its database and its surroundings look like, declared and not judged.

/// How an outbox looks. Expressions are SQL over `n`, the number of a row.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Unique, in words.
    pub name: &'static str,
    /// The major version of PostgreSQL.
    pub major: u32,
    /// Options of CREATE DATABASE, and settings of the database after it.
    pub database: &'static str,
    pub database_settings: &'static [&'static str],
    /// As whom the relay connects.
    pub role: Role,
    /// Who creates the table.
    pub made: Made,
    /// As in SQL, with its schema.
    pub table: &'static str,
    pub id: Id,
    pub aggregate_type: &'static str,
    pub aggregate_id: &'static str,
    pub payload: Payload,
    /// What the partition key of a row has behind its aggregate id.
    pub key_suffix: &'static str,
    /// The definition of `seq`; empty where there is none.
    pub seq: &'static str,
    pub created_at: &'static str,
    pub sent_at: &'static str,
    /// Columns that have other names, which `source.columns` maps: ours, and the table's.
    pub renamed: &'static [(&'static str, &'static str)],
    /// Columns before, between and behind the others, each with its comma.
    pub front: &'static str,
    pub middle: &'static str,
    pub back: &'static str,
    /// What INSERT gives beside the five columns: names, and values.
    pub given: &'static [(&'static str, &'static str)],
    /// Constraints of the table.
    pub key: &'static str,
    /// What follows the columns.
    pub tail: &'static str,
    /// SQL before and after the table is created, by its owner; `{t}` is the table.
    pub before: &'static str,
    pub after: &'static str,
    /// SQL once `migrate` is done, before `check`, and once the relay has published its first rows.
    pub once_migrated: &'static str,
    pub once_running: &'static str,
    /// Where rows go, one after the other; `{t}` is the table.
    pub targets: &'static [&'static str],
    /// Old rows when the relay starts for the first time.
    pub past: Past,
    /// Further settings of the relay: the key, and its value as TOML has it.
    pub settings: &'static [(&'static str, &'static str)],
    pub twin: Twin,
}

/// The type of `id` and its value.
#[derive(Clone, Copy, Debug)]
pub struct Id {
    pub kind: &'static str,
    pub of: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    Of(&'static str),
    /// Any type, into which an expression over `text` turns the payload.
    By(&'static str, &'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Superuser,
    /// What `migrate --relay-role` grants, and settings: `ALTER ROLE … <text>`.
    Least(&'static [&'static str]),
    /// Owns database and tables, and can create neither roles nor databases.
    Owner(&'static [&'static str]),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    ByHand,
    /// By `outboxd migrate` with these arguments.
    ByMigrate(&'static [&'static str]),
}

/// What stands in the table before the relay knows of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Past {
    /// A hundred rows; `all` or `now` in turn.
    InTurn,
    All(u64),
    Now(u64),
}

/// A second outbox beside the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Twin {
    None,
    /// A table of this name, of the same columns, in the same database.
    Table(&'static str),
    /// The same table in another database of the server.
    Database,
}

/// A plain outbox as an application makes it; everything else is told by how it differs.
pub const PLAIN: Shape = Shape {
    name: "plain",
    major: 15,
    database: "",
    database_settings: &[],
    role: Role::Superuser,
    made: Made::ByHand,
    table: "public.outbox",
    id: Id {
        kind: "uuid",
        of: "md5('id' || n)::uuid",
    },
    aggregate_type: "varchar(255) NOT NULL",
    aggregate_id: "varchar(255) NOT NULL",
    payload: Payload::Of("json"),
    key_suffix: "",
    seq: "bigint GENERATED ALWAYS AS IDENTITY UNIQUE",
    created_at: "timestamptz NOT NULL DEFAULT clock_timestamp()",
    sent_at: "timestamptz",
    renamed: &[],
    front: "",
    middle: "",
    back: "",
    given: &[],
    key: "PRIMARY KEY (id)",
    tail: "",
    before: "",
    after: "",
    once_migrated: "",
    once_running: "",
    targets: &["{t}"],
    past: Past::InTurn,
    settings: &[],
    twin: Twin::None,
};

impl Shape {
    /// A column of ours as the table calls it, for SQL.
    pub fn column(&self, ours: &str) -> String {
        let renamed = self.renamed.iter().find(|(name, _)| *name == ours);
        renamed.map_or(ours.to_owned(), |(_, name)| {
            format!("\"{}\"", name.replace('"', "\"\""))
        })
    }

    /// CREATE TABLE, where the shape is made by hand; `table` is this outbox or its twin.
    pub fn create(&self, table: &str) -> String {
        let payload = match self.payload {
            Payload::Of(kind) | Payload::By(kind, _) => kind,
        };
        let optional = |name: &str, definition: &str| match definition {
            "" => String::new(),
            definition => format!(", {} {definition}", self.column(name)),
        };
        let (seq, created_at, sent_at) = (
            optional("seq", self.seq),
            optional("created_at", self.created_at),
            optional("sent_at", self.sent_at),
        );
        let key = match self.key {
            "" => String::new(),
            key => format!(", {key}"),
        };
        let Self {
            front,
            middle,
            back,
            aggregate_type,
            aggregate_id,
            tail,
            id,
            ..
        } = self;
        let kind = id.kind;
        let [own_id, own_type, own_aggregate, event_type, body] =
            FIVE.map(|ours| self.column(ours));
        let create = format!(
            "CREATE TABLE {{t}} ({front} {own_id} {kind} NOT NULL, {own_type} {aggregate_type}, {middle} \
             {own_aggregate} {aggregate_id}, {event_type} varchar(255) NOT NULL, {body} {payload}{seq}{created_at}{sent_at}{back}{key}) \
             {tail};"
        );
        // An unlogged one is told by its tail: CREATE TABLE has the word in front.
        let create = match create.strip_suffix(" UNLOGGED;") {
            Some(rest) => rest.replacen("CREATE TABLE", "CREATE UNLOGGED TABLE", 1) + ";",
            None => create,
        };
        filled(&format!("{}; {create} {}", self.before, self.after), table)
    }

    /// What rows numbered `n` of `rows`, a FROM clause, are inserted with; `state` is the payload's.
    pub fn insert(&self, target: &str, kind: &str, state: u32, rows: &str) -> String {
        let names: String = self
            .given
            .iter()
            .map(|(name, _)| format!(", {name}"))
            .collect();
        let values: String = self
            .given
            .iter()
            .map(|(_, value)| format!(", {value}"))
            .collect();
        let (id, payload) = (self.id.of, self.payload_of(state));
        let five = FIVE.map(|ours| self.column(ours)).join(", ");
        format!(
            "INSERT INTO {target} ({five}{names}) \
             SELECT {id}, '{kind}', {AGGREGATE}, 'Changed', {payload}{values} FROM {rows} ORDER BY n"
        )
    }

    /// The payload of row `n` in a state, as SQL.
    pub fn payload_of(&self, state: u32) -> String {
        let text = format!("('{{\"n\": ' || n || ', \"s\": \"grün {state}\"}}')");
        match self.payload {
            Payload::Of("bytea") => format!("convert_to({text}, 'UTF8')"),
            Payload::Of(kind) => format!("{text}::{kind}"),
            Payload::By(_, by) => by.replace("text", &text),
        }
    }

    /// Where the row goes.
    pub fn target(&self, number: u64, table: &str) -> String {
        let target = self.targets[number as usize % self.targets.len()];
        filled(target, table)
    }

    /// Whether rows can be inserted many at once.
    pub fn has_one_target(&self) -> bool {
        self.targets.len() == 1
    }
}

/// Debezium's columns.
const FIVE: [&str; 5] = ["id", "aggregatetype", "aggregateid", "type", "payload"];

/// The aggregate of a row, as SQL: some with many rows, in letters that every encoding of the shapes has.
pub const AGGREGATE: &str = "('a-' || n % 7)";

/// `AGGREGATE` for people.
pub fn aggregate(number: u64) -> String {
    format!("a-{}", number % 7)
}

/// The payload's text of a row in a state.
pub fn payload_text(number: u64, state: u32) -> String {
    format!("{{\"n\": {number}, \"s\": \"grün {state}\"}}")
}

pub fn filled(sql: &str, table: &str) -> String {
    sql.replace("{t}", table)
}

/// A mode with a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    pub mode: &'static str,
    pub mark: &'static str,
}

impl Pair {
    pub fn is_polled(self) -> bool {
        self.mode == "polling"
    }
}

/// Every mode with every mark.
pub const PAIRS: [Pair; 8] = [
    pair("replication", "ledger"),
    pair("replication", "sent_at"),
    pair("replication", "delete"),
    pair("replication", "none"),
    pair("polling", "ledger"),
    pair("polling", "sent_at"),
    pair("polling", "delete"),
    pair("polling", "none"),
];

const fn pair(mode: &'static str, mark: &'static str) -> Pair {
    Pair { mode, mark }
}
