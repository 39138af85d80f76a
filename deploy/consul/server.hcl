# One of three Consul servers.
server = true
bootstrap_expect = 3
node_name = "@NAME@"
data_dir = "/var/lib/consul"
bind_addr = "@ADDRESS@"
client_addr = "0.0.0.0"
retry_join = [@SERVERS@]
retry_interval = "1s"
# The default of 5 is for small machines: it takes Consul seconds more to see that its leader is dead.
performance {
  raft_multiplier = 1
}
disable_update_check = true
log_level = "warn"
