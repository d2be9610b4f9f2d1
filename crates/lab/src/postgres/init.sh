#!/bin/sh
# The first process of the lab's PostgreSQL guest: network from the kernel's command line, then the database.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
[ -e /proc/self ] || mount -t proc proc /proc
[ -e /sys/kernel ] || mount -t sysfs sysfs /sys
mkdir -p /dev/shm /run/postgresql
mount -t tmpfs tmpfs /dev/shm
chown postgres:postgres /run/postgresql

address=
for word in $(cat /proc/cmdline); do
  case $word in limosa.ip=*) address=${word#limosa.ip=} ;; esac
done
modprobe virtio_net
ip link set lo up
ip address add "$address" dev eth0
ip link set eth0 up

version=$(ls /usr/lib/postgresql)
runuser -u postgres -- "/usr/lib/postgresql/$version/bin/postgres" \
  -D "/var/lib/postgresql/$version/main" \
  -c "config_file=/etc/postgresql/$version/main/postgresql.conf" &
database=$!
# Ends of other processes are none of ours, and wake a shell's wait.
while kill -0 "$database" 2>/dev/null; do wait; done
echo "limosa-init: the database has ended" >/dev/console
while :; do sleep 3600; done
