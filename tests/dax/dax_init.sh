#!/bin/busybox sh
# The guest's first program: modules, the host's root (read-only) with writable memory where programs expect it, and the
# folder that is shared with the test. Then it carries out what the test asks for.
busybox() { /bin/busybox "$@"; }
busybox mount -t devtmpfs devtmpfs /dev
for module in /modules/*.ko; do busybox insmod "$module" || busybox echo "cannot load $module"; done
busybox mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=512000 root /root
busybox mount -t proc proc /root/proc
busybox mount -t sysfs sysfs /root/sys
busybox mount --move /dev /root/dev
# A checkout beneath one of these folders would be hidden by the memory.
checkout=$(busybox sed -n 's/.*raftkv\.checkout=\([^ ]*\).*/\1/p' /root/proc/cmdline)
busybox mkdir /checkout
busybox mount --bind "/root$checkout" /checkout
for folder in tmp run var/tmp; do busybox mount -t tmpfs tmpfs "/root/$folder"; done
[ -d "/root$checkout" ] || { busybox mkdir -p "/root$checkout" && busybox mount --bind /checkout "/root$checkout"; }
busybox mkdir -p /root/dev/shm /root/run/share /root/run/pmem /root/run/kernel /root/run/disk
busybox mount -t tmpfs tmpfs /root/dev/shm
busybox mount -t 9p -o trans=virtio,version=9p2000.L,rw,cache=none,msize=512000 share /root/run/share
exec /bin/busybox switch_root /root /usr/bin/busybox sh /run/share/agent.sh
