# A Docker daemon in this network namespace, in mount and process namespaces of its own, and an FTP server in a container that
# publishes port 21 and nothing else. Prints "published" once that is so, and goes on until it is killed.
#
#   docker.sh DOCKER IPTABLES VSFTPD NAME SETTING [OPTION-OF-DOCKERD...]
#
# The first three are the folders of the lab's cache; NAME is the parent of the cgroups that Docker makes; SETTING is one more line
# for the server's configuration.
set -eu
docker=$1 iptables=$2 vsftpd=$3 name=$4 setting=$5
shift 5
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs run /run
mkdir -p /run/bin /run/lock /run/state /run/image
[ -e /sys/fs/cgroup/cgroup.controllers ] || grep -q '/sys/fs/cgroup' /proc/mounts || mount -t cgroup2 cgroup /sys/fs/cgroup

# iptables as it was unpacked, under the names by which Docker calls it.
libraries=$(echo "$iptables"/usr/lib/*-linux-gnu)
for program in iptables ip6tables iptables-save ip6tables-save iptables-restore ip6tables-restore; do
    printf '#!/bin/sh\nLD_LIBRARY_PATH=%s XTABLES_LIBDIR=%s/xtables exec %s/usr/sbin/xtables-nft-multi %s "$@"\n' \
        "$libraries" "$libraries" "$iptables" "$program" >"/run/bin/$program"
    chmod +x "/run/bin/$program"
done
ln -s "$docker/usr/bin/tini-static" /run/bin/docker-init
export PATH="/run/bin:$docker/usr/sbin:$docker/usr/bin:$PATH" DOCKER_HOST=unix:///run/docker.sock

dockerd --host "$DOCKER_HOST" --data-root /run/state --exec-root /run/docker --pidfile /run/docker.pid --cgroup-parent "$name" \
    --exec-opt native.cgroupdriver=cgroupfs --experimental --ip6tables --ipv6 --fixed-cidr-v6 fd00:d0c::/64 "$@" >/run/log 2>&1 &
daemon=$!
until docker version >/dev/null 2>&1; do
    kill -0 "$daemon" || { tail -n 20 /run/log; exit 1; }
    sleep 0.1
done

# An image of vsftpd, its libraries, and one file.
cd /run/image
mkdir -p etc usr/sbin srv/ftp run/empty
cp "$vsftpd/usr/sbin/vsftpd" usr/sbin/
libraries=$(echo "$vsftpd"/usr/lib/*-linux-gnu "$vsftpd"/lib/*-linux-gnu | tr ' ' ':')
LD_LIBRARY_PATH=$libraries ldd usr/sbin/vsftpd | grep -o '/[^ ]*' | while read -r library; do
    mkdir -p ".$(dirname "${library#"$vsftpd"}")"
    cp -L "$library" ".${library#"$vsftpd"}"
done
echo ftp:x:100:100::/srv/ftp:/bin/false >etc/passwd
echo nobody:x:65534:65534::/:/bin/false >>etc/passwd
echo ftp:x:100: >etc/group
echo 'In a container.' >srv/ftp/readme.txt
printf '%s\n' background=NO seccomp_sandbox=NO isolate=NO isolate_network=NO listen=NO listen_ipv6=YES anonymous_enable=YES \
    pasv_min_port=50000 pasv_max_port=50100 no_anon_password=YES secure_chroot_dir=/run/empty nopriv_user=nobody "$setting" >etc/vsftpd.conf
tar -c . | docker import - ftp >/dev/null
# vsftpd is not made to be the first process: `--init` gives it a parent.
docker run --detach --init --publish 21:21 ftp /usr/sbin/vsftpd /etc/vsftpd.conf >/dev/null
echo published
wait
