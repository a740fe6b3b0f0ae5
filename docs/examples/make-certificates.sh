#!/bin/sh
# Makes a CA and certificates for a cluster, with nothing but openssl.
#
#   make-certificates.sh DIR [ROLE:]NAME[,HOST_OR_ADDRESS_OR_URI...] ...
#   make-certificates.sh DIR --revoke NAME ...
#
# Each NAME gets DIR/NAME/ with ca.pem, cert.pem and key.pem. ROLE is what its holder may do: coordinator, worker, admin,
# operator or viewer; a NAME without one gets no role. It becomes a URI in the certificate, such as
# rug://worker/NAME or rug://role/admin. An editor of the tenant web is NAME,rug://editor/web. Coordinators need every host
# name and address they are reached at; others need none. The CA is made once and kept in DIR/ca.pem and DIR/ca.key;
# calling the script again with a NAME that is there renews its certificate, and running processes take it over.
#
# With --revoke every certificate that was ever issued for NAME is put into DIR/crl.pem, for tls.crl, also those from before
# a renewal; without a NAME the list is made anew, which has to happen within CRL_DAYS (3650). After a theft: revoke first,
# then make a new certificate. What was issued is in DIR/issued.txt.
#
# DAYS (365) says how long certificates count, CA_DAYS (3650) how long the CA does.
set -eu

[ $# -ge 2 ] || { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p;}' "$0" >&2; exit 2; }
dir=$1
shift
# With a slash at its end a link would be looked through.
while [ "$dir" != "${dir%/}" ] && [ "$dir" != / ]; do dir=${dir%/}; done
umask 077
mkdir -p "$dir"
# A CA that somebody else can read or has put there would sign for them, too.
[ -O "$dir" ] && [ ! -L "$dir" ] || { echo "$dir: is not a folder of yours" >&2; exit 2; }
[ -z "$(find "$dir" -maxdepth 0 -perm /022)" ] || { echo "$dir: others can write to it; chmod go-w" >&2; exit 2; }
[ ! -e "$dir/ca.key" ] || [ -O "$dir/ca.key" ] || { echo "$dir/ca.key: is not yours" >&2; exit 2; }

if [ ! -f "$dir/ca.key" ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days "${CA_DAYS:-3650}" -subj "/CN=rug ca" \
        -addext "basicConstraints=critical,CA:TRUE,pathlen:0" -addext "keyUsage=critical,keyCertSign,cRLSign" \
        -keyout "$dir/ca.key" -out "$dir/ca.pem" 2>/dev/null
fi

# Serial numbers of revoked certificates, and the list that is made of them.
if [ "$1" = --revoke ]; then
    shift
    touch "$dir/revoked.txt"
    for name in "$@"; do
        # Those that an earlier version of this script issued are in no list.
        serials=$(awk -F '\t' -v name="$name" '$1 == name { print $2 }' "$dir/issued.txt" 2>/dev/null || :)
        [ ! -f "$dir/$name/cert.pem" ] ||
            serials="$serials $(openssl x509 -in "$dir/$name/cert.pem" -noout -serial | cut -d= -f2)"
        [ -n "$serials" ] || { echo "$name: no certificate of that name was issued here" >&2; exit 2; }
        for serial in $serials; do
            grep -q "	$serial	" "$dir/revoked.txt" ||
                printf 'R\t391231235959Z\t%s\t%s\tunknown\t/CN=%s\n' "$(date -u +%y%m%d%H%M%SZ)" "$serial" "$name" >>"$dir/revoked.txt"
        done
    done
    [ -f "$dir/crlnumber" ] || echo 01 >"$dir/crlnumber"
    printf '%s\n' "[ca]" "default_ca=rug" "[rug]" "database=$dir/revoked.txt" "crlnumber=$dir/crlnumber" "default_md=sha256" \
        "unique_subject=no" "crl_extensions=crl" "[crl]" "authorityKeyIdentifier=keyid" >"$dir/.crl.cnf"
    openssl ca -gencrl -config "$dir/.crl.cnf" -keyfile "$dir/ca.key" -cert "$dir/ca.pem" \
        -crldays "${CRL_DAYS:-3650}" -out "$dir/.crl.new" 2>/dev/null
    rm "$dir/.crl.cnf"
    mv "$dir/.crl.new" "$dir/crl.pem"
    echo "$dir/crl.pem: $(wc -l <"$dir/revoked.txt") revoked"
    exit 0
fi

for entry in "$@"; do
    name=${entry%%,*}
    rest=${entry#"$name"}
    role=
    case $name in *:*) role=${name%%:*} name=${name#*:} ;; esac
    # These mean something in the file that openssl reads the names from.
    case $entry in *[\#\$\;\\\"\']*) echo "$entry: names have no # \$ ; \\ or quotes" >&2; exit 2 ;; esac
    case $name in '' | *[!A-Za-z0-9._-]* | .*) echo "$entry: begins with no name of letters, digits, ._-" >&2; exit 2 ;; esac
    names=DNS:$name
    # Workers and operators are clients only.
    usage=clientAuth
    case $role in '' | coordinator) usage=serverAuth,clientAuth ;; esac
    case $role in
        '') ;;
        coordinator | worker) names=$names,URI:rug://$role/$name ;;
        admin | operator | viewer) names=$names,URI:rug://role/$role ;;
        *) echo "$entry: $role is no role: coordinator, worker, admin, operator or viewer" >&2; exit 2 ;;
    esac
    while [ -n "$rest" ]; do
        rest=${rest#,}
        host=${rest%%,*}
        rest=${rest#"$host"}
        case $host in
            '') continue ;;
            *://*) names=$names,URI:$host ;;
            *:* | [0-9]*.[0-9]*.[0-9]*.[0-9]*) names=$names,IP:$host ;;
            *) names=$names,DNS:$host ;;
        esac
    done
    mkdir -p "$dir/$name"
    [ -O "$dir/$name" ] && [ ! -L "$dir/$name" ] && [ -z "$(find "$dir/$name" -maxdepth 0 -perm /022)" ] ||
        { echo "$dir/$name: is not a folder of yours alone" >&2; exit 2; }
    new=$dir/$name/.new
    rm -rf "$new"
    mkdir "$new"
    # Coordinators are servers, and clients of each other.
    printf '%s\n' "subjectAltName=$names" "basicConstraints=critical,CA:FALSE" \
        "keyUsage=critical,digitalSignature" "extendedKeyUsage=$usage" >"$new/ext"
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$name" \
        -keyout "$new/key.pem" -out "$new/csr" 2>/dev/null
    openssl x509 -req -in "$new/csr" -CA "$dir/ca.pem" -CAkey "$dir/ca.key" -set_serial "0x$(openssl rand -hex 16)" \
        -days "${DAYS:-365}" -extfile "$new/ext" -out "$new/cert.pem" 2>/dev/null
    printf '%s\t%s\n' "$name" "$(openssl x509 -in "$new/cert.pem" -noout -serial | cut -d= -f2)" >>"$dir/issued.txt"
    cp "$dir/ca.pem" "$new/ca.pem"
    for file in ca.pem cert.pem key.pem; do mv "$new/$file" "$dir/$name/$file"; done
    rm -r "$new"
    openssl x509 -in "$dir/$name/cert.pem" -noout -enddate | sed "s|^|$dir/$name: $names |"
done
