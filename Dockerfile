# CPU by default.  CUDA:
#   docker build --target cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 --build-arg EXTRAS=page,models -t sdc:cuda .
FROM python:3.11-slim-bookworm AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# of pyproject.toml: page for the figures on the page at /, models for `sdc models pull`
ARG EXTRAS=page
RUN python -m venv /opt/sdc
ENV PATH=/opt/sdc/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN pip install --index-url "$TORCH_INDEX" torch==2.13.0
WORKDIR /src
COPY pyproject.toml README.md ./
COPY service service
RUN pip install "./[$EXTRAS]"

FROM python:3.11-slim-bookworm AS runtime
RUN useradd --system --uid 10001 --home-dir /var/lib/sdc --create-home sdc \
    && install -d -o sdc /var/cache/sdc
COPY --from=build /opt/sdc /opt/sdc
ENV PATH=/opt/sdc/bin:$PATH PYTHONUNBUFFERED=1 \
    SDC_HOST=0.0.0.0 SDC_PORT=8080 SDC_STORE_URL=file:///var/lib/sdc/store
USER 10001
VOLUME /var/lib/sdc
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/livez', timeout=4)"]
ENTRYPOINT ["sdc"]
CMD ["serve"]

# triton calls a C compiler.
FROM runtime AS cuda
USER 0
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
USER 10001
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM runtime AS cpu
