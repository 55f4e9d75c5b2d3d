# syntax=docker/dockerfile:1
# The flights app and the streamlib command. Builds in one stage, runs in another without compilers or sources.

FROM python:3.13-slim AS build
WORKDIR /src
RUN ["python", "-m", "venv", "/opt/build"]
RUN ["python", "-m", "venv", "/opt/streamlib"]
# What comes from elsewhere comes by its hash: another file of the same version is refused.
COPY deploy/requirements.txt deploy/requirements-build.txt ./deploy/
# Bytecode is written here, so that the running container never wants to write beside its code.
RUN --mount=type=cache,target=/root/.cache/pip \
    ["/opt/streamlib/bin/pip", "install", "--require-hashes", "--compile", "-r", "deploy/requirements.txt"]
RUN --mount=type=cache,target=/root/.cache/pip \
    ["/opt/build/bin/pip", "install", "--require-hashes", "-r", "deploy/requirements-build.txt"]
COPY pyproject.toml README.md LICENSE ./
COPY streamlib ./streamlib
COPY workers ./workers
RUN ["/opt/build/bin/pip", "wheel", "--no-index", "--no-deps", "--no-build-isolation", "-w", "/opt/wheel", "."]
RUN ["/opt/streamlib/bin/pip", "install", "--no-index", "--compile", "--find-links", "/opt/wheel", "streamlib"]

FROM python:3.13-slim
RUN ["useradd", "--uid", "10001", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", "streamlib"]
# The one place that may be written, also when the root file system is read-only.
RUN ["install", "--directory", "--owner", "10001", "--group", "10001", "/data"]
VOLUME ["/data"]
COPY --from=build /opt/streamlib /opt/streamlib
WORKDIR /app
# Read from the working directory; STREAMLIB_* in the environment wins over it.
COPY config/streamlib.toml ./streamlib.toml
ENV PATH="/opt/streamlib/bin:$PATH" \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    STREAMLIB_LOG_FORMAT=json \
    FLIGHTS_DB=/data/flights.sqlite3
# A number, so that an orchestrator can see that it is not root.
USER 10001:10001
EXPOSE 9464
STOPSIGNAL SIGTERM
# Exec form: the worker itself gets SIGTERM and drains.
ENTRYPOINT ["streamlib"]
CMD ["run", "workers.flights.app:app", "--http", "0.0.0.0:9464"]
