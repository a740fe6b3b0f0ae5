#!/bin/sh
# Boots systemd as the first process of namespaces of its own, in which the units are tried: systemd.sh GROUP
#
# It sees the files of this machine, but has its own /run, /var/lib, /usr/local and changes of /etc, its own control group below that
# of this machine, and no network but a loopback device. It ends, with all that it started, with this process.
set -eu
if [ "$1" != --inside ]; then
    unified=/sys/fs/cgroup/cgroup.controllers
    if [ -e $unified ]; then group=/sys/fs/cgroup/$1; else group=/sys/fs/cgroup/systemd/$1; fi
    mkdir "$group"
    echo $$ >"$group/cgroup.procs"
    exec unshare --mount --pid --fork --net --uts --ipc --cgroup --kill-child "$0" --inside
fi

mount --make-rprivate /
mount -t proc proc /proc
ip link set lo up
hostname unit-host
# What is below /run may be the way to this script.
for folder in /run /var/lib /usr/local; do mount -t tmpfs -o mode=755 tmpfs "$folder"; done
mkdir -p /run/systemd /run/lock /run/etc/upper /run/etc/work
mount -t overlay -o lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work overlay /etc
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    umount -l /sys/fs/cgroup
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
else
    umount -l /sys/fs/cgroup/* 2>/dev/null || :
    umount -l /sys/fs/cgroup
    mount -t tmpfs tmpfs /sys/fs/cgroup
    mkdir /sys/fs/cgroup/systemd
    mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
fi
# Nothing of this machine is started.
printf '[Unit]\nDefaultDependencies=no\n' >/etc/systemd/system/units-trial.target
export container=rug-test
exec /lib/systemd/systemd --unit=units-trial.target --show-status=0 --log-target=null
