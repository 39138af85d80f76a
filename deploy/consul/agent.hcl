# The agent on each host that runs Patroni, which asks it at 127.0.0.1:8500.
node_name = "@NAME@"
data_dir = "/var/lib/consul"
bind_addr = "@ADDRESS@"
retry_join = [@SERVERS@]
retry_interval = "1s"
disable_update_check = true
log_level = "warn"
