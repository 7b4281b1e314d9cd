#!/bin/sh
# Exit code 0 if the browser tests can run (or there are none), 1 if they have to be left out.
# As root, where apt-get is, a missing Chromium is installed, with a font that has Japanese.
set -eu

if ! grep -rqs --include='*.py' 'mark\.browser' tests; then
    exit 0
fi
for name in chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null; then
        exit 0
    fi
done
if [ "$(id -u)" -ne 0 ]; then
    echo "Browser tests are left out: Chromium is missing, and installing it needs root."
    exit 1
fi
if ! command -v apt-get >/dev/null; then
    echo "Browser tests are left out: Chromium is missing, and there is no apt-get to install it."
    exit 1
fi
echo "The browser tests need Chromium: installing the packages chromium and fonts-noto-cjk."
export DEBIAN_FRONTEND=noninteractive
if apt-get update -qq >/dev/null &&
    apt-get install -y -qq --no-install-recommends chromium fonts-noto-cjk >/dev/null; then
    exit 0
fi
echo "Browser tests are left out: Chromium could not be installed (see above)."
exit 1
