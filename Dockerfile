# One image for the node, the operator and the command line: ENTRYPOINT is `raftkv`, the arguments say which.
#
#   docker build -t raftkv .
#   docker build -t raftkv --build-arg BASE=my-debian .      another base: Debian 13 or newer
ARG BASE=debian:trixie-slim

# --- build: compiles the engine and the turn's modules, and makes a virtual environment that the last stage takes over
# as it is
FROM ${BASE} AS build
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates cargo gcc libc6-dev python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/raftkv && python3 -m venv /opt/build
WORKDIR /src
COPY requirements.lock requirements-runtime.lock ./
RUN /opt/raftkv/bin/pip install --no-cache-dir --requirement requirements-runtime.lock
RUN /opt/build/bin/pip install --no-cache-dir --constraint requirements.lock \
  setuptools setuptools-rust wheel mypy types-protobuf prometheus-client
COPY pyproject.toml setup.py README.md LICENSE ./
COPY node node
COPY operator operator
COPY playground playground
RUN /opt/build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . \
 && /opt/raftkv/bin/pip install --no-cache-dir --no-deps /wheels/*.whl \
 && /opt/raftkv/bin/raftkv --version | grep compiled

# --- the image: Python, the environment, an unprivileged user
FROM ${BASE}
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates python3 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 65532 --no-create-home --shell /usr/sbin/nologin raftkv
COPY --from=build /opt/raftkv /opt/raftkv
COPY LICENSE /usr/share/doc/raftkv/LICENSE
ENV PATH=/opt/raftkv/bin:$PATH PYTHONUNBUFFERED=1
USER 65532:65532
ENTRYPOINT ["/opt/raftkv/bin/raftkv"]
CMD ["--help"]
