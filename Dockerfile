# syntax=docker/dockerfile:1
# The image holds one binary and what it needs: libc, libm, libgcc_s and the certificates of public authorities.
# It runs as user 65532, writes no file, and so works with a read-only root file system.

FROM rust:1.95-slim-bookworm AS build
# librdkafka, curl, OpenSSL, zlib and zstd are built from the sources that their crates carry: no header package.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends cmake g++ gcc libc6-dev make perl \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
# The image has glibc 2.36, which reads packed relocations: build.rs.
ENV OUTBOXD_PACK_RELOCATIONS=1

# The dependencies, minutes of C and C++, are a layer that only Cargo.toml and Cargo.lock renew.
COPY Cargo.toml Cargo.lock build.rs ./
RUN mkdir src benches integration-tests \
    && touch src/lib.rs benches/measure.rs benches/micro.rs integration-tests/main.rs integration-tests/make_faults.rs \
    && echo 'fn main() {}' > src/main.rs \
    && cargo build --release --locked --bin outboxd

COPY migrations migrations
COPY src src
# The stubs above are newer than the sources: touched, these are built.
RUN touch src/lib.rs src/main.rs \
    && cargo build --release --locked --bin outboxd \
    && target/release/outboxd --version

FROM gcr.io/distroless/cc-debian12:nonroot
LABEL org.opencontainers.image.title="outboxd" \
      org.opencontainers.image.description="Relays a transactional outbox from PostgreSQL to Kafka" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /build/target/release/outboxd /usr/local/bin/outboxd
COPY LICENSE /usr/share/doc/outboxd/LICENSE
# Probes come from outside the container.
ENV OUTBOXD_ADMIN__LISTEN=0.0.0.0:9464
# The OpenSSL in the binary looks for authorities where this says.
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
EXPOSE 9464
USER 65532:65532
ENTRYPOINT ["outboxd"]
CMD ["run", "--config", "/etc/outboxd/outboxd.toml"]
