#!/usr/bin/env bash
# An exporter that exports nothing: it makes the directory of a program and leaves it empty.
set -euo pipefail

# The parameter file has one argument on a line; the directory follows --output.
mkdir -p "$(sed -n '/^--output$/{n;p}' "${1#@}")"
