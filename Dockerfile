# The service alone, for a database and a broker that run elsewhere (docker-compose.yml). pip builds the page, too, with
# the Node that hatch_build.py asks for. Nothing that builds is left in the second stage, and it runs as an ordinary user.
FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY twin twin
COPY ingest ingest
COPY alerts alerts
COPY models3d models3d
COPY web web
RUN python -m venv /opt/cimtwin \
    && /opt/cimtwin/bin/pip install --no-cache-dir --disable-pip-version-check . \
    && /opt/cimtwin/bin/pip uninstall --yes --quiet pip

FROM python:3.12-slim
RUN useradd --system --uid 10001 --user-group --home-dir /var/lib/cimtwin --create-home --shell /usr/sbin/nologin cimtwin
COPY --from=build /opt/cimtwin /opt/cimtwin
ENV PATH=/opt/cimtwin/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    CIMTWIN_DATA_DIR=/var/lib/cimtwin \
    CIMTWIN_HTTP=0.0.0.0:8000
USER cimtwin
WORKDIR /var/lib/cimtwin
VOLUME /var/lib/cimtwin
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
STOPSIGNAL SIGTERM
CMD ["cimtwin", "serve"]
