# The same Python for building and running; compiled packages depend on it.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/venv
WORKDIR /app
# Dependencies first: this layer changes only with the lock file.
COPY requirements.lock ./
RUN /opt/venv/bin/pip install --require-hashes -r requirements.lock
COPY . .
RUN /opt/venv/bin/pip install --no-deps --no-build-isolation -e .

FROM ${PYTHON_IMAGE}
# A number, so that Kubernetes can see that it is not root.
RUN useradd --system --uid 10001 --no-create-home fixnado && install -d -o fixnado /app/var
WORKDIR /app
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 FIXNADO_HOST=0.0.0.0
USER 10001
# The embedded database, when no other is set.
VOLUME /app/var
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=4s --start-period=20s --retries=3 CMD ["python", "-c", \
    "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ.get('FIXNADO_PORT', '8000') + '/health/live', timeout=3)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["fixnado"]
CMD ["serve"]
