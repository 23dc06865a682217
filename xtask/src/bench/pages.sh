# What part of the agent's memory is the kernel's choice: it maps some pages of a file around each one that is used, and
# here it is told not to. Prints notes as macvlan-measure does.
mount -t debugfs none /sys/kernel/debug || exit 1

# Sends a request; the agent takes the end of what is sent for a client that has gone.
ask() {
    (printf 'GET %s HTTP/1.0\r\n\r\n' "$1"; sleep 1) | nc 127.0.0.1 9199
}

# Kilobytes in memory of the files that are mapped. Maps of BPF have no path.
of_files() {
    awk '/^[0-9a-f]+-[0-9a-f]+ / { is_file = $6 ~ /^\// } /^Rss:/ && is_file { sum += $2 } END { print sum }' "/proc/$1/smaps"
}

of_its_own() {
    awk '/^RssAnon:/ { print $2 }' "/proc/$1/status"
}

for around in 65536 4096; do
    echo $around >/sys/kernel/debug/fault_around_bytes || exit 1
    macvlan-agent run --web.listen-address=127.0.0.1:9199 --run.dir=/run/agent --state.dir=/run/state 2>/dev/null &
    agent=$!
    waited=0
    until ask /-/ready | grep -q ' 200 '; do
        waited=$((waited + 1))
        [ $waited -lt 60 ] || exit 1
    done
    for scrape in 1 2 3 4 5 6 7 8 9 10; do
        ask /metrics | grep -q '^macvlan_agent_build_info' || exit 1
    done
    echo "note 14.none in a machine with Linux $(uname -r) whose fault_around_bytes is $around, $(of_files $agent) kB are mapped from files and $(of_its_own $agent) kB are its own, after ten scrapes"
    kill $agent
    wait $agent
done
