#!/bin/sh
# Checks that both executables run on other machines: of shared libraries they need libc, libm and the loader at most,
# and of glibc 2.35 at most (Ubuntu 22.04's).
#
#   scripts/check_portable.sh BUILD
set -u
build=$1 status=0
for program in "$build/staged-gpt2" "$build/weights_tool"; do
    needed=$(objdump -p "$program" | awk '$1 == "NEEDED" { print $2 }')
    if [ -z "$needed" ]; then
        echo "$program: objdump lists no needed library, so nothing was checked"
        status=1
    fi
    for library in $needed; do
        case $library in
        libc.so.6 | libm.so.6 | ld-linux-x86-64.so.2 | ld-linux-aarch64.so.1) ;;
        *)
            echo "$program needs $library; link it in"
            status=1
            ;;
        esac
    done
    newest=$(objdump -T "$program" | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -n 1)
    if [ "$(printf '%s\nGLIBC_2.35\n' "$newest" | sort -V | tail -n 1)" != GLIBC_2.35 ]; then
        echo "$program needs $newest; 2.35 is the newest it may ask for:" \
            "$(objdump -T "$program" | awk -v v="($newest)" '$0 ~ v { print $NF }' | tr '\n' ' ')"
        status=1
    fi
done
exit $status
