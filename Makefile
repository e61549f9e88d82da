# The two commands of a fresh clone are `make demo` and `make test`; `make help` names the rest.

CARGO ?= cargo
MINUTES ?= 60

.DEFAULT_GOAL := help
.PHONY: help demo check test faults shapes soak simulate servers bench bench-quote bench-micro bench-check bench-record clean-servers

help: ## Shows this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: ## Kills the relay again and again and counts what the broker holds (KAFKA=1: a real Kafka)
	$(CARGO) build --release --locked --bin outboxd
	@KAFKA=$(KAFKA) integration-tests/servers/demo.sh $(DEMO_ARGS)

check: ## Format, lints, generated files; licences and spelling where cargo-deny and typos are installed
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) clippy --locked --test faults --test shapes -- -D warnings
	$(CARGO) test --locked --quiet --lib is_fresh
	@if command -v cargo-deny >/dev/null; then $(CARGO) deny --log-level warn check bans licenses sources; fi
	@if command -v typos >/dev/null; then typos; fi

test: ## Everything: check, unit tests, integration tests on real servers (TESTS=name: only these)
	@integration-tests/stages.sh

faults: servers ## Runs the fault matrix on real servers, writes docs/faults.md (ROW=1,14 FULL=1 FRESH=1)
	$(CARGO) test --locked --no-run --test integration
	@OUTBOXD_RELAY_LOGS=$(CURDIR)/target/faults/logs ROW=$(ROW) FULL=$(FULL) FRESH=$(FRESH) JOBS=$(JOBS) SOAK= $(CARGO) test --locked --quiet --test faults

shapes: servers ## Runs tables, databases and neighbours of every shape in every mode and mark (SHAPE=text MODE= MARK= JOBS=4 FRESH=1)
	@OUTBOXD_RELAY_LOGS=$(CURDIR)/target/shapes/logs SHAPE="$(SHAPE)" MODE=$(MODE) MARK=$(MARK) FRESH=$(FRESH) JOBS=$(JOBS) $(CARGO) test --locked --quiet --test shapes

soak: servers ## Mixes faults at random for MINUTES=60, from SEED=number
	@OUTBOXD_RELAY_LOGS=$(CURDIR)/target/faults/logs SOAK=$(MINUTES) SEED=$(SEED) $(CARGO) test --locked --quiet --test faults

simulate: ## Judges SEEDS=1000000 (or 5..9) schedules of a simulated world, or tells the events of one SEED=7
	@SEED=$(SEED) SEEDS=$(SEEDS) CARGO_PROFILE_RELEASE_LTO=off $(CARGO) test --release --locked --quiet --lib \
		simulator::tests::simulate -- --ignored --nocapture

servers: ## Fetches the Kafka and PostgreSQL that tests run on into .servers/
	@integration-tests/servers/fetch.sh

# As the image holds it: Dockerfile.
bench bench-micro bench-check bench-record: export OUTBOXD_PACK_RELOCATIONS = 1

# What is set on the command line, make hands on: benches/measure/plan.rs reads it.
bench: servers ## Measures speed, latency and cost (FULL=1 PEERS=1 SOAK=1 PART=drain,idle WORKLOAD=one-row ONLY=unix ROUNDS=3 ROWS= WATCH=)
	$(if $(PEERS),@benches/peers/fetch.sh)
	$(CARGO) build --release --locked --bin outboxd
	$(CARGO) run --release --locked --quiet --example measure

bench-quote: ## Puts the newest run of `make bench`, or RUNS="one others", into docs/performance.md, six rows into README.md, a chart into docs/
	@benches/quote.sh $(RUNS)

MICRO = $(CARGO) run --release --locked --quiet --example micro --

bench-micro: ## Times what every row passes, piece by piece (CASE=decode)
	$(MICRO) --bench $(CASE)

bench-check: ## Fails where a piece takes a tenth more instructions than recorded; needs valgrind
	$(MICRO) --check

bench-record: ## Records what each piece takes now as the baseline of bench-check
	$(MICRO) --record

clean-servers: ## Removes .servers/
	rm -rf .servers
