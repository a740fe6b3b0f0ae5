#!/bin/sh
# Makes a CA and certificates for a cluster, with nothing but openssl.
#
#   make-certificates.sh DIR NAME[,HOST_OR_ADDRESS...] ...
#
# Each NAME gets DIR/NAME/ with ca.pem, cert.pem and key.pem. Coordinators need every host name and address they are
# reached at; workers and operators need only a name. The CA is made once and kept in DIR/ca.pem and DIR/ca.key; calling
# the script again with a NAME that is there renews its certificate, and running processes take it over by themselves.
# DAYS (365) says how long certificates count, CA_DAYS (3650) how long the CA does.
set -eu

[ $# -ge 2 ] || { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p;}' "$0" >&2; exit 2; }
dir=$1
shift
umask 077
mkdir -p "$dir"

if [ ! -f "$dir/ca.key" ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days "${CA_DAYS:-3650}" -subj "/CN=rug ca" \
        -addext "basicConstraints=critical,CA:TRUE,pathlen:0" -addext "keyUsage=critical,keyCertSign,cRLSign" \
        -keyout "$dir/ca.key" -out "$dir/ca.pem" 2>/dev/null
fi

for entry in "$@"; do
    name=${entry%%,*}
    case $name in '' | *[!A-Za-z0-9._-]* | .*) echo "$entry: begins with no name of letters, digits, ._-" >&2; exit 2 ;; esac
    names=DNS:$name
    rest=${entry#"$name"}
    while [ -n "$rest" ]; do
        rest=${rest#,}
        host=${rest%%,*}
        rest=${rest#"$host"}
        case $host in
            '') continue ;;
            *:* | [0-9]*.[0-9]*.[0-9]*.[0-9]*) names=$names,IP:$host ;;
            *) names=$names,DNS:$host ;;
        esac
    done
    mkdir -p "$dir/$name"
    new=$dir/$name/.new
    rm -rf "$new"
    mkdir "$new"
    # Coordinators are servers, and clients of each other.
    printf '%s\n' "subjectAltName=$names" "basicConstraints=critical,CA:FALSE" \
        "keyUsage=critical,digitalSignature" "extendedKeyUsage=serverAuth,clientAuth" >"$new/ext"
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$name" \
        -keyout "$new/key.pem" -out "$new/csr" 2>/dev/null
    openssl x509 -req -in "$new/csr" -CA "$dir/ca.pem" -CAkey "$dir/ca.key" -set_serial "0x$(openssl rand -hex 16)" \
        -days "${DAYS:-365}" -extfile "$new/ext" -out "$new/cert.pem" 2>/dev/null
    cp "$dir/ca.pem" "$new/ca.pem"
    for file in ca.pem cert.pem key.pem; do mv "$new/$file" "$dir/$name/$file"; done
    rm -r "$new"
    openssl x509 -in "$dir/$name/cert.pem" -noout -enddate | sed "s|^|$dir/$name: $names |"
done
