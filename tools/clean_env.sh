#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Runs a command in an environment of nothing but what is named here, so that a check gives the same answer
# whatever else the shell of its caller exports (PYTHONPATH, ANSIBLE_*, PYTEST_ADDOPTS, VLLM_* ...).
#
#   tools/clean_env.sh COMMAND [ARGUMENT ...]      the Makefile begins every line of its recipes with it
set -euo pipefail

passed=()
for name in $(compgen -e); do
    case $name in
        # Who runs it, and where programs are found and may write. LD_LIBRARY_PATH: some Pythons don't start without.
        PATH | LD_LIBRARY_PATH | HOME | USER | LOGNAME | SHELL | TMPDIR | XDG_*) ;;
        # Git trusts a checkout of the account that called sudo.
        SUDO_UID) ;;
        # How text is read and shown. Ansible starts in a UTF-8 locale only.
        LANG | LANGUAGE | LC_* | TZ | TERM | COLUMNS | NO_COLOR) ;;
        # How package indexes are reached.
        http_proxy | https_proxy | ftp_proxy | all_proxy | no_proxy) ;;
        HTTP_PROXY | HTTPS_PROXY | FTP_PROXY | ALL_PROXY | NO_PROXY) ;;
        PIP_* | UV_* | SSL_CERT_FILE | SSL_CERT_DIR | REQUESTS_CA_BUNDLE | CURL_CA_BUNDLE) ;;
        # Which container engine is meant.
        DOCKER_*) ;;
        # Which Pythons there are, and which one `make setup` takes.
        PYENV_* | PYTHON) ;;
        # What the project itself reads: CONTRIBUTING.md and `make help` tell of them.
        CI | QUICK | KEEP | STOP | ROOTS | HOMEGPT_* | TEST_COUNTS | LEFT_OUT | PART_SEED | PYTHON_OF_TWO) ;;
        CONTRACT_TARGET | FUZZ_SEED) ;;
        *) continue ;;
    esac
    passed+=("$name=${!name}")
done
exec env -i "${passed[@]}" "$@"
