#!/bin/sh
# Prints the first Python of 3.10 to 3.12 among the commands given (default: python3 python3.12 python3.11 python3.10).
# Prints one line on stderr and exits 2 where there is none.
found=""
for candidate in ${*:-python3 python3.12 python3.11 python3.10}; do
    version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || {
        [ $# -gt 0 ] && found="$found $candidate (does not run)"
        continue
    }
    case "$version" in
    3.10 | 3.11 | 3.12)
        if "$candidate" -c 'import venv, ensurepip' 2>/dev/null; then
            command -v "$candidate"
            exit 0
        fi
        found="$found $candidate=$version (without the venv module: apt-get install python$version-venv)"
        ;;
    *) found="$found $candidate=$version" ;;
    esac
done
echo "error: bevstack needs Python 3.10, 3.11 or 3.12 with venv; found:${found:- none}. Give one with: make PYTHON=/path/to/python3.11" >&2
exit 2
