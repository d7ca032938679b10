#!/bin/sh
# Makes the secrets of docker-compose.yml that do not exist yet: random, in files, never printed.
# The folder is closed to others; the files in it are readable, because Compose mounts them with the modes they have
# here and the containers run as other users.
set -eu
cd "$(dirname "$0")/secrets"
chmod 700 .
umask 022
new() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }
for name in postgres_password postgres_writer_password postgres_reader_password redis_password identity_key admin_key webhook_secret; do
  test -s "$name" || new > "$name"
done
# The gateway knows only the hash of the operators' key.
printf %s "$(cat admin_key)" | sha256sum | cut -d' ' -f1 | tr -d '\n' > admin_key_sha256
echo "Secrets are in $(pwd). Operators send: Authorization: Bearer \$(cat $(pwd)/admin_key)"
