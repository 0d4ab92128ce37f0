# The same Python for building and running; compiled packages depend on it.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PYTHONDONTWRITEBYTECODE=1
# For the one piece of C; without it the package is built all the same, only slower.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
# Without pip inside: what runs cannot install anything.
RUN python -m venv --without-pip /opt/venv
WORKDIR /build
# Dependencies first: this layer changes only with the lock file.
COPY requirements.lock ./
RUN pip --python /opt/venv/bin/python install --require-hashes -r requirements.lock
COPY . .
# The wheel has everything that is served: packages, migrations, the page and the JavaScript client.
RUN /opt/venv/bin/python -m hatchling build -t wheel \
    && pip --python /opt/venv/bin/python install --no-deps --no-index dist/*.whl \
    && pip --python /opt/venv/bin/python check

FROM ${PYTHON_IMAGE}
# A number, so that Kubernetes can see that it is not root.
RUN useradd --system --uid 10001 --no-create-home fixnado && install -d -o fixnado /app/var
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 FIXNADO_HOST=0.0.0.0
WORKDIR /app
USER 10001
# The embedded database, when no other is set.
VOLUME /app/var
EXPOSE 8000
# Whether the process lives. Whether it should get traffic is /health/ready, which a load balancer asks.
HEALTHCHECK --interval=10s --timeout=4s --start-period=20s --retries=3 CMD ["python", "-c", \
    "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ.get('FIXNADO_PORT', '8000') + '/health/live', timeout=3)"]
# Drains, releases its leases and ends; give it FIXNADO_SHUTDOWN_DEADLINE_SECONDS and a moment.
STOPSIGNAL SIGTERM
ENTRYPOINT ["fixnado"]
CMD ["serve"]
