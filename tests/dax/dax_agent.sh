# The guest's hands: carries out the test's commands, one after the other. Command N is the file `N.sh` of the shared
# folder; its output goes to `N.out` and its exit code to `N.rc`. The shared folder is the host's, so that what is in it
# survives the guest.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp LC_ALL=C.UTF-8
busybox ifconfig lo 127.0.0.1 up
busybox ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up
busybox hostname guest
cd /run/share
number=1
while :; do
  if [ -e "$number.sh" ]; then
    busybox sh "$number.sh" >"$number.out" 2>&1 </dev/null
    echo $? >"$number.rc.part"
    mv "$number.rc.part" "$number.rc"
    number=$((number + 1))
  else
    busybox usleep 100000
  fi
done
