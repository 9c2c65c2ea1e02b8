# Two images from one file: `app` answers HTTP and has no torch in it; `worker` trains, and answers
# requests to models where its command is `tunery sampler`.
#
#   docker build --target app    -t tunery-app .
#   docker build --target worker -t tunery-worker .

FROM python:3.11.14-slim-bookworm AS base

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TUNERY_DATA_DIR=/data

RUN --mount=type=cache,target=/root/.cache/pip \
    pip install pip==26.3 \
    && groupadd --gid 10001 tunery \
    && useradd --uid 10001 --gid tunery --no-create-home --shell /usr/sbin/nologin tunery \
    # A new volume takes its owner from the image.
    && install --directory --owner tunery --group tunery --mode 0700 /data

WORKDIR /srv/tunery
COPY requirements.lock ./


FROM base AS wheel

COPY pyproject.toml README.md LICENSE ./
COPY tunery/ tunery/
COPY app/ app/
COPY worker/ worker/
COPY migrations/ migrations/
COPY examples/ examples/
RUN --mount=type=cache,target=/root/.cache/pip \
    pip wheel --no-deps --wheel-dir /wheels .


FROM base AS app

RUN --mount=type=cache,target=/root/.cache/pip --mount=from=wheel,source=/wheels,target=/wheels \
    pip install -c requirements.lock "$(echo /wheels/*.whl)[s3]"

USER 10001:10001
VOLUME /data
# All addresses of the container's own network; what reaches it is decided by what is published.
# So a key is needed: the first start writes one.
ENV HOME=/tmp \
    TUNERY_HOST=0.0.0.0 \
    TUNERY_BOOTSTRAP_KEY_FILE=/data/admin-key \
    TUNERY_PORT=8000
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"TUNERY_PORT\"]}/healthz', timeout=4)"]
CMD ["tunery", "api"]


FROM base AS worker

# The plain package of torch for Linux brings several GB of CUDA along; this index has CPU builds.
# A layer of its own, which a change of Tunery's code leaves alone.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-deps --index-url "${TORCH_INDEX}" -c requirements.lock torch
RUN --mount=type=cache,target=/root/.cache/pip --mount=from=wheel,source=/wheels,target=/wheels \
    pip install -c requirements.lock "$(echo /wheels/*.whl)[worker,s3]"

USER 10001:10001
VOLUME /data
ENV HOME=/tmp
# Whether the worker's heartbeat is recent, also while it trains.
# (At its first start it installs the embedded base model before its first heartbeat.)
HEALTHCHECK --interval=20s --timeout=10s --start-period=5m --retries=3 \
    CMD ["tunery", "worker", "--check"]
CMD ["tunery", "worker"]
