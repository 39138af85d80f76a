# Runs inside a host's fresh mount, UTS and IPC namespaces (its network namespace was made before): builds the host's
# file system, says "ready" and stays as the process that keeps the namespaces.
#   $1 host name   $2 root ("/": the machine's own)   $3 the host's state folder   $4… binds "from:to"
set -eu
name=$1 root=$2 state=$3
shift 3

echo "$name" > /proc/sys/kernel/hostname

if [ "$root" = / ]; then
    new=
else
    new=$state/root
    mkdir -p "$new" "$state/upper" "$state/work"
    # An upper layer that is itself an overlay (a container's disk) is refused: then the changes live in memory.
    if ! mount -t overlay overlay -o "lowerdir=$root,upperdir=$state/upper,workdir=$state/work" "$new" 2>/dev/null; then
        mkdir -p "$state/memory"
        mount -t tmpfs -o mode=755 tmpfs "$state/memory"
        mkdir "$state/memory/upper" "$state/memory/work"
        mount -t overlay overlay \
            -o "lowerdir=$root,upperdir=$state/memory/upper,workdir=$state/memory/work" "$new"
    fi
    mount -t proc proc "$new/proc"
    mount -t tmpfs -o mode=755 tmpfs "$new/dev"
    for node in null zero full random urandom tty; do
        touch "$new/dev/$node"
        mount --bind "/dev/$node" "$new/dev/$node"
    done
    mkdir "$new/dev/shm" "$new/dev/pts"
    mount -t tmpfs -o mode=1777 tmpfs "$new/dev/shm"
    mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts "$new/dev/pts"
    ln -s pts/ptmx "$new/dev/ptmx"
    ln -s /proc/self/fd "$new/dev/fd"
    ln -s /proc/self/fd/0 "$new/dev/stdin"
    ln -s /proc/self/fd/1 "$new/dev/stdout"
    ln -s /proc/self/fd/2 "$new/dev/stderr"
    mount -t tmpfs -o mode=755 tmpfs "$new/run"
    mount -t tmpfs -o mode=1777 tmpfs "$new/tmp"
fi

# A sysfs of this network namespace, so that /sys/class/net shows the host's own interfaces; the mounts below it anew.
cgroup=$(mktemp -d "$state/cgroup.XXXXXX")
if [ -d /sys/fs/cgroup ]; then mount --rbind /sys/fs/cgroup "$cgroup"; fi
mount -t sysfs sysfs "$new/sys"
mount -t bpf -o mode=700 bpf "$new/sys/fs/bpf"
if [ -d "$new/sys/fs/cgroup" ] && mountpoint -q "$cgroup"; then mount --rbind "$cgroup" "$new/sys/fs/cgroup"; fi

touch "$new/etc/hosts"
mount --bind "$state/../hosts" "$new/etc/hosts"

for bind in "$@"; do
    from=${bind%%:*} to=$new${bind#*:}
    if [ -d "$from" ]; then mkdir -p "$to"; else mkdir -p "${to%/*}"; touch "$to"; fi
    mount --bind "$from" "$to"
done

if [ -n "$new" ]; then
    cd "$new"
    mkdir -p .machine
    pivot_root . .machine
    cd /
    umount -l /.machine
    rmdir /.machine
fi
echo ready
exec sleep infinity
