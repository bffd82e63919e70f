# machinehub in a container: a hub on port 8787, its data in /var/lib/machinehub.
#
#   docker build -t machinehub .
#   docker run -p 8787:8787 -v machinehub:/var/lib/machinehub -e MACHINEHUB_TOKEN=<secret> machinehub
#
# Machines run in worker processes behind seccomp and Landlock; `docker exec <container> machinehub doctor`
# says which of the walls stand. `make image-check` runs these steps without Docker.

FROM debian:trixie-slim AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates make nodejs npm python3 python3-venv
WORKDIR /src
COPY . .
RUN make wheel
RUN python3 -m venv /opt/machinehub \
 && /opt/machinehub/bin/pip install --no-cache-dir --require-hashes -r requirements-runtime.lock \
 && /opt/machinehub/bin/pip install --no-cache-dir --no-deps build/wheel/*.whl

FROM debian:trixie-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates python3 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --home-dir /var/lib/machinehub --create-home machinehub
COPY --from=build /opt/machinehub /opt/machinehub
ENV PATH=/opt/machinehub/bin:/usr/local/bin:/usr/bin:/bin
ENV MACHINEHUB_HOST=0.0.0.0
ENV MACHINEHUB_DATA=/var/lib/machinehub
ENV MACHINEHUB_CACHE=/var/lib/machinehub/cache
WORKDIR /var/lib/machinehub
USER machinehub
EXPOSE 8787
VOLUME /var/lib/machinehub
HEALTHCHECK --start-period=60s CMD python3 -c "import urllib.request as u; u.urlopen('http://127.0.0.1:8787/readyz', timeout=3)"
CMD ["machinehub", "serve"]
