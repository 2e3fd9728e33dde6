#!/bin/sh
# Generate random secrets for docker/compose.yaml: sh docker/secrets.sh > docker/secrets.env
umask 077
for name in TOKEN STORE_KEY STORE_SECRET POSTGRES_PASSWORD PREFECT_PASSWORD GRAFANA_PASSWORD; do
    echo "$name=$(openssl rand -hex 20)"
done
