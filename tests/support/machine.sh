#!/bin/sh
# A machine for systemd, made of namespaces: systemd is its first process, sees the files of this machine, and changes
# none of them. Its network is that of whoever calls.
#
#   machine.sh make NAME PROJECT PROGRAM   becomes the machine; in it, /mnt/project is a checkout in which PROGRAM was built
#   machine.sh boot                        what the first process does, before it is systemd
#   machine.sh remove NAME                 takes away what outlives the processes of the machine: its control groups
#
# `make` and `remove` want a mount namespace of their own.
set -eu
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
kept=/mnt # An empty folder that every machine has.
init=/lib/systemd/systemd

fail() {
    echo "machine: $*" >&2
    exit 1
}

# Where this process may make control groups. A machine is a group within the one that we are in, wherever that is.
find_groups() {
    mkdir -p "$kept/groups"
    mount -t cgroup2 groups "$kept/groups" || fail "control groups cannot be mounted, and systemd wants them"
    groups=$kept/groups$(sed -n 's/^0:://p' /proc/self/cgroup)
}
take_away() {
    [ ! -d "$1" ] || find "$1" -depth -type d -exec rmdir {} +
}

case $1 in
make)
    name=$2 project=$3 program=$4
    [ -x "$init" ] || fail "there is no $init here: run \`tests/setup test\`"
    mount -t tmpfs -o mode=755 kept "$kept"
    find_groups
    # Those that were killed could not take theirs away. The number in the name is the process that made it.
    for left in "$groups"/ph-*; do
        maker=${left##*/ph-}
        [ -d "/proc/${maker%%-*}" ] || take_away "$left" 2>/dev/null || true
    done
    mkdir "$groups/$name"
    echo $$ >"$groups/$name/cgroup.procs"

    # In its place on the machine, because folders of this one will be hidden.
    cp "$0" "$kept/script"
    mkdir -p "$kept/project/target/release" "$kept/project/deploy"
    : >"$kept/project/target/release/pinhole"
    mount --bind "$program" "$kept/project/target/release/pinhole"
    mount --bind "$project/deploy" "$kept/project/deploy"

    for folder in etc usr/local/bin; do
        mkdir -p "$kept/changes/$folder" "$kept/work/$folder"
        changes=lowerdir=/$folder,upperdir=$kept/changes/$folder,workdir=$kept/work/$folder
        mount -t overlay -o "$changes" changes "/$folder"
    done

    # No units but those that every machine has, and what the rest of this one sets up stays out.
    mkdir -p "$kept/units/sysinit.target.wants" "$kept/nothing" "$kept/settings/system"
    (
        cd /usr/lib/systemd/system
        cp sysinit.target basic.target multi-user.target network.target network-pre.target shutdown.target \
            sockets.target timers.target paths.target slices.target local-fs.target swap.target umount.target \
            systemd-journald.service systemd-journald.socket systemd-journald-dev-log.socket nftables.service "$kept/units"
    )
    ln -s ../systemd-journald.service "$kept/units/sysinit.target.wants"
    mount --bind "$kept/units" /usr/lib/systemd/system
    mount --bind "$kept/nothing" /usr/lib/systemd/system-generators
    mount --bind "$kept/settings" /etc/systemd
    for folder in run tmp var/tmp var/log; do
        mount -t tmpfs -o mode=755 "${folder##*/}" "/$folder"
    done
    chmod 1777 /tmp /var/tmp

    exec unshare --cgroup --mount --pid --fork --kill-child sh "$kept/script" boot
    ;;
boot)
    # Of the kernel it may set what belongs to its network, and nothing else.
    mount -t proc proc /proc
    mount --bind /proc/sys /proc/sys
    mount -o remount,bind,ro /proc/sys
    mount --bind /dev/null /dev/kmsg
    mount --bind /dev/null /dev/console
    umount "$kept/groups"
    umount --recursive /sys/fs/cgroup 2>/dev/null || true
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    : >"$kept/ready"
    exec env -i PATH="$PATH" container=lab "$init" --system --unit=multi-user.target --log-target=journal
    ;;
remove)
    mount -t tmpfs kept "$kept"
    find_groups
    take_away "$groups/$2"
    ;;
esac
