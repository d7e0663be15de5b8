# syntax=docker/dockerfile:1
# Inferno in a container: compiled in one stage, run in another that has no compiler, not as root.
#   docker build -t inferno .
# For CUDA: --build-arg BASE=<a CUDA devel image on Debian or Ubuntu> --build-arg RUN_BASE=<its runtime image>
#           --build-arg LLAMA_CMAKE="-DGGML_CUDA=ON"
ARG BASE=debian:bookworm-slim
ARG RUN_BASE=${BASE}

FROM ${BASE} AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential git python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY deploy/bootstrap.py deploy/requirements.lock deploy/requirements-runtime.lock deploy/requirements-llama.txt deploy/requirements-model.txt deploy/
# A wheel of llama-cpp-python that `make llama-wheel` left in wheels/ is used as it is; else it is compiled here,
# for every x86-64-v3 (or arm64) CPU and not only for the one that builds.
COPY wheel[s] wheels
ARG LLAMA_CMAKE=""
ENV INFERNO_VENV=/opt/inferno INFERNO_CACHE=/tmp/cache INFERNO_LLAMA_PORTABLE=1 INFERNO_LLAMA_CMAKE=${LLAMA_CMAKE}
RUN python3 deploy/bootstrap.py image-dependencies
COPY pyproject.toml setup.py README.md LICENSE ./
COPY native native
COPY inferno inferno
RUN /opt/inferno/bin/pip install --no-deps --no-build-isolation --no-compile . \
    && /opt/inferno/bin/pip uninstall -y -q cython wheel setuptools pip \
    && find /opt/inferno -name '*.pth' -delete \
    && find /opt/inferno -depth \( -name tests -o -name __pycache__ -o -name '*.pyx' -o -name '*.pxd' \) -exec rm -rf {} + \
    && rm -rf /opt/inferno/stamps /opt/inferno/lib/python3*/site-packages/llama_cpp/server \
    && python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/inferno/lib

FROM ${RUN_BASE}
# Bytecode of all of Python: Debian's package compiles half of it, and nothing can be written once the root is read-only, so
# that each process would compile asyncio, json and others anew.
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-minimal libpython3-stdlib libgomp1 \
    && python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" \
    && rm -rf /var/lib/apt/lists/* /var/log/* /var/cache/*
COPY --from=build /opt/inferno /opt/inferno
COPY deploy/container-start.txt /opt/inferno/container-start.txt
RUN install -d -m 0700 -o 65532 -g 65532 /var/lib/inferno
ENV PATH=/opt/inferno/bin:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1 INFERNO_SERVER_HOST=0.0.0.0 INFERNO_STORAGE_DATA_DIR=/var/lib/inferno
LABEL org.opencontainers.image.title="Inferno" \
      org.opencontainers.image.description="The LLM inference server that is secure from its first start" \
      org.opencontainers.image.licenses="Apache-2.0"
USER 65532:65532
VOLUME /var/lib/inferno
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["/opt/inferno/bin/inferno", "doctor", "--live"]
ENTRYPOINT ["/opt/inferno/bin/inferno"]
CMD ["serve"]
