#!/bin/sh
# The Debian of the lab, with the programs that manage firewalls, as a file system of its own: what `tests/setup` has
# unpacked, with changes in memory, and what the packages do when they are installed.
#
#   debian.sh FOLDER PROGRAM   becomes it, and stays; PROGRAM is /usr/local/bin/pinhole in it
#
# Wants a mount namespace and a process namespace of its own. The file system is /mnt/root there.
set -eu
folder=$1 program=$2
mount -t tmpfs -o mode=755 changes /mnt
mkdir /mnt/changes /mnt/work /mnt/root
mount -t overlay -o "lowerdir=$folder,upperdir=/mnt/changes,workdir=/mnt/work" debian /mnt/root
cd /mnt/root
mount -t proc proc proc
mount --rbind /dev dev
mount -t tmpfs -o mode=755 run run
mkdir -p run/dbus run/lock run/fail2ban var/lib/ufw var/lib/fail2ban var/log etc/pinhole usr/local/bin
: >usr/local/bin/pinhole
mount --bind "$program" usr/local/bin/pinhole

# Alternatives, and what scripts of the packages make.
for name in iptables ip6tables; do
    for part in "" -save -restore; do ln -sf xtables-nft-multi "usr/sbin/$name$part"; done
done
ln -sf mawk usr/bin/awk
cp usr/share/ufw/iptables/*.rules usr/share/ufw/ufw.conf etc/ufw/
cp usr/share/base-passwd/passwd.master etc/passwd
cp usr/share/base-passwd/group.master etc/group
for user in messagebus:101 polkitd:102; do
    echo "${user%:*}:x:${user#*:}:${user#*:}::/nonexistent:/usr/sbin/nologin" >>etc/passwd
    echo "${user%:*}:x:${user#*:}:" >>etc/group
done
echo 0123456789abcdef0123456789abcdef >etc/machine-id
: >run/ready
# Its first process has to wait for those that lost their parent.
while :; do sleep 60; done
