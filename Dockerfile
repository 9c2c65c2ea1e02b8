# Two images from one file: `app` answers HTTP and has no torch in it; `worker` trains.
#
#   docker build --target app    -t tunery-app .
#   docker build --target worker -t tunery-worker .

FROM python:3.11.14-slim-bookworm AS base

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    TUNERY_DATA_DIR=/data

# The first pip that reads dependency groups is 25.1.
RUN pip install pip==26.3 \
    && groupadd --gid 10001 tunery \
    && useradd --uid 10001 --gid tunery --no-create-home --shell /usr/sbin/nologin tunery \
    # A new volume takes its owner from the image.
    && install --directory --owner tunery --group tunery --mode 0750 /data

WORKDIR /srv/tunery
COPY pyproject.toml requirements.lock ./


FROM base AS app

RUN pip install --group app -c requirements.lock
COPY migrations/ migrations/
COPY app/ app/

USER 10001:10001
VOLUME /data
# All addresses of the container's own network; what reaches it is decided by what is published.
ENV TUNERY_HOST=0.0.0.0 \
    TUNERY_PORT=8000
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"TUNERY_PORT\"]}/healthz', timeout=4)"]
CMD ["python", "-m", "app"]


FROM base AS worker

# The plain package of torch for Linux brings several GB of CUDA along; this index has CPU builds.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-deps --index-url "${TORCH_INDEX}" -c requirements.lock torch \
    && pip install --group worker -c requirements.lock
COPY migrations/ migrations/
# The worker shares `app.core` with the API and nothing else of it.
COPY app/__init__.py app/__init__.py
COPY app/core/ app/core/
COPY worker/ worker/

USER 10001:10001
VOLUME /data
# A living worker touches its file every few seconds, also while it trains.
# (At its first start it installs the embedded base model before that.)
HEALTHCHECK --interval=20s --timeout=5s --start-period=5m --retries=3 \
    CMD ["sh", "-c", "test -n \"$(find \"$TUNERY_DATA_DIR/workers\" -name '*.alive' -mmin -1)\""]
CMD ["python", "-m", "worker"]
