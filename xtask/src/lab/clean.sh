# Removes a lab: every process in its network namespaces, the namespaces, its state folder. The only way a lab ends.
#   $1 "wait": when the owner has gone (stdin ends; the word "keep" lets the lab live on), or "now"
#   $2 prefix of the namespaces' names   $3 the lab's state folder
mode=$1 prefix=$2 state=$3

if [ "$mode" = wait ]; then
    # Ctrl-C reaches this process too; the owner decides.
    trap '' INT TERM HUP
    read -r word
    [ "$word" = keep ] && exit 0
fi

names=$(ls /run/netns 2>/dev/null | grep "^$prefix" || true)
for try in 1 2 3 4 5 6 7 8 9 10; do
    alive=
    for name in $names; do
        # Only what lives in a namespace that this lab made.
        pids=$(ip netns pids "$name" 2>/dev/null)
        [ -n "$pids" ] && kill -9 $pids 2>/dev/null && alive=yes
    done
    [ -z "$alive" ] && break
    sleep 0.05
done
# Each waits for the kernel: together they wait once.
for name in $names; do
    ip netns del "$name" &
done
wait
case $state in
    */pgsplice-lab/*) rm -rf "$state" ;;
esac
