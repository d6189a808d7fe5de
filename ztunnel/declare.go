// SPDX-License-Identifier: Apache-2.0

package main

import (
	"math"
	"time"
)

// declare lists every setting. Environment names are those of the reference proxy where the meaning is the same
// (ambient section 10); docs/CONFIGURATION.md has the table.
func (c *Config) declare(s *settings, d defaults) {
	c.declareServers(s, d)
	c.declareNames(s, d)
	c.declarePages(s, d)
	c.declareSockets(s)
	c.declareTunnel(s)
	c.declareProcess(s, d)
	declareRefused(s)
}

func (c *Config) declareServers(s *settings, d defaults) {
	s.text(&c.ZDSSocket, "zds-socket", "/run/sluice/ztunnel.sock", "socket on which the agent names the pods to serve", "INPOD_UDS")
	s.text(&c.AgentSocket, "agent-socket", "/run/sluice/agent.sock", "socket of our agent, which hands listeners over; empty for a foreign agent: listeners are created in the pod", "AGENT_SOCKET")
	s.text(&c.PinRoot, "pin-root", "/sys/fs/bpf/sluice/v1", "folder of the pinned maps; unused with a foreign agent", "PIN_ROOT")
	s.text(&c.XDSAddress, "xds-address", d.xdsAddress, "control plane, unix:///path or [https://]host:port; empty for none, with local xDS", "XDS_ADDRESS")
	s.text(&c.XDSRootCA, "xds-root-ca", "./var/run/secrets/istio/root-cert.pem", "who signs the control plane's certificate: file, PEM text or SYSTEM", "XDS_ROOT_CA")
	s.text(&c.AltXDSHostname, "alt-xds-hostname", "", "name accepted in the control plane's certificate besides its host", "ALT_XDS_HOSTNAME")
	s.text(&c.CAAddress, "ca-address", "", "certificate authority; empty means the control plane", "CA_ADDRESS")
	s.text(&c.CARootCA, "ca-root-ca", "", "who signs the authority's certificate; empty means as for the control plane", "CA_ROOT_CA")
	s.text(&c.AltCAHostname, "alt-ca-hostname", "", "name accepted in the authority's certificate besides its host", "ALT_CA_HOSTNAME")
	s.text(&c.AuthToken, "auth-token", d.authToken, "bearer token: file or the text itself; unused on unix sockets; empty for none", "AUTH_TOKEN")
	s.span(&c.SecretTTL, "secret-ttl", 24*time.Hour, "life time asked for certificates", "SECRET_TTL")
	s.text(&c.CRLPath, "crl-path", "", "file of PEM revocation lists, watched; empty means none", "CRL_PATH")
	s.text(&c.LocalXDSPath, "local-xds-path", "", "YAML file of workloads, services and policies, for tests", "LOCAL_XDS_PATH")
	s.text(&c.LocalXDS, "local-xds", "", "the same as text", "LOCAL_XDS")
}

func (c *Config) declareNames(s *settings, d defaults) {
	s.text(&c.NodeName, "node-name", "", "name of this node", "NODE_NAME")
	s.text(&c.PodName, "pod-name", "", "name of this process's pod; empty means the node name", "POD_NAME")
	s.text(&c.Namespace, "pod-namespace", "istio-system", "namespace of this process's pod", "POD_NAMESPACE")
	s.text(&c.ServiceAccount, "service-account", "ztunnel", "service account of this process's pod", "SERVICE_ACCOUNT")
	s.text(&c.InstanceIP, "instance-ip", "1.1.1.1", "address of this process's pod", "INSTANCE_IP")
	s.text(&c.ClusterID, "cluster-id", "Kubernetes", "name of the cluster", "CLUSTER_ID", "ISTIO_META_CLUSTER_ID")
	s.text(&c.Network, "network", "", "name of the network the pods are in", "NETWORK")
	s.text(&c.TrustDomain, "trust-domain", "cluster.local", "taken and not used: a workload is of the trust domain that its record names, else of cluster.local", "TRUST_DOMAIN")
	s.text(&c.ClusterDomain, "cluster-domain", "cluster.local", "domain of the cluster's services, for the queries of pods whose DNS is captured", "CLUSTER_DOMAIN")
	s.text(&c.PreferredNamespace, "preferred-service-namespace", "", "namespace whose services answer to host names that several have, if the asking pod's own has none", "PREFERED_SERVICE_NAMESPACE")
	s.switched(&c.DNSCapture, "dns-capture", d.dnsCapture, "answer the queries that a foreign agent's rules redirect; our agent captures them per pod", "ISTIO_META_DNS_CAPTURE")
}

func (c *Config) declarePages(s *settings, d defaults) {
	s.text(&c.StatsAddress, "stats-address", d.statsAddress, "where metrics are served")
	s.text(&c.ReadinessAddress, "readiness-address", ":15021", "where /healthz/ready is served")
	s.text(&c.AdminAddress, "admin-address", d.adminAddress, "where the admin page is served; loopback only")
}

func (c *Config) declareSockets(s *settings) {
	s.switched(&c.IPv6, "ipv6", true, "listen on and route to IPv6 addresses", "IPV6_ENABLED")
	s.choice(&c.OriginalSource, "original-source", "connect to pods from the client's address; only false says no", "ENABLE_ORIG_SRC")
	s.switched(&c.PortReuse, "port-reuse", true, "let another ztunnel listen on the same ports; only with a foreign agent", "INPOD_PORT_REUSE")
	s.mark(&c.PacketMark, "packet-mark", 1337, "mark of the sockets that a foreign agent's rules leave alone", "PACKET_MARK")
	s.switched(&c.KeepAlive.Enabled, "keepalive", true, "TCP keepalive on every connection", "KEEPALIVE_ENABLED")
	s.span(&c.KeepAlive.Time, "keepalive-time", 180*time.Second, "silence before the first probe", "KEEPALIVE_TIME")
	s.span(&c.KeepAlive.Interval, "keepalive-interval", 180*time.Second, "pause between probes", "KEEPALIVE_INTERVAL")
	s.number(&c.KeepAlive.Retries, "keepalive-retries", 9, 1, 127, "probes without an answer before a connection ends", "KEEPALIVE_RETRIES")
	s.switched(&c.UserTimeout, "user-timeout", false, "bound by the keepalive's times how long sent data may go without an acknowledgement", "USER_TIMEOUT_ENABLED")
	s.number(&c.MaxConnectionsPerPod, "max-connections-per-pod", 0, 0, math.MaxInt32, "connections that one pod may have; 0 means a share of the limit of open files", "MAX_CONNECTIONS_PER_POD")
	s.number(&c.MaxConnections, "max-connections", 0, 0, math.MaxInt32, "connections of all pods; 0 means as the limit of open files allows", "MAX_CONNECTIONS")
}

func (c *Config) declareTunnel(s *settings) {
	s.number(&c.PoolMaxStreams, "pool-max-streams", 100, 1, math.MaxInt32, "tunnels over one connection to a peer", "POOL_MAX_STREAMS_PER_CONNECTION")
	s.span(&c.PoolUnusedRelease, "pool-unused-release", 5*time.Minute, "how long a connection to a peer is kept without tunnels", "POOL_UNUSED_RELEASE_TIMEOUT")
	s.number(&c.StreamWindow, "stream-window", 4<<20, 65535, math.MaxInt32, "bytes that may be on their way in one tunnel", "HTTP2_STREAM_WINDOW_SIZE")
	s.number(&c.ConnectionWindow, "connection-window", 16<<20, 65535, math.MaxInt32, "bytes that may be on their way in one connection to or from a peer", "HTTP2_CONNECTION_WINDOW_SIZE")
	s.number(&c.WindowMemory, "window-memory", 0, 0, math.MaxInt, "bytes that all tunnels together may hold unread, above 64 KiB each; 0 means a quarter of the memory limit", "WINDOW_MEMORY")
	s.number(&c.FrameSize, "frame-size", 1<<20, 1<<14, 1<<24-1, "bytes of the largest frame taken", "HTTP2_FRAME_SIZE")
	s.switched(&c.TLS12, "tls12", false, "take TLS 1.2 too", "TLS12_ENABLED")
	s.text(&c.CompliancePolicy, "compliance-policy", "", "pqc: only X25519MLKEM768 for key exchange; empty: no restriction", "COMPLIANCE_POLICY")
	s.switched(&c.LocalhostAppTunnel, "localhost-app-tunnel", true, "reach applications that take the PROXY protocol over loopback", "LOCALHOST_APP_TUNNEL")
	s.switched(&c.ResponseBaggage, "response-baggage", true, "send and read workload attributes in answers to and requests for tunnels", "ENABLE_RESPONSE_BAGGAGE")
	s.switched(&c.AuthzInfo, "authz-info", false, "log at info level which policy decided", "AUTHZ_POLICY_INFO_LOGGING")
}

func (c *Config) declareProcess(s *settings, d defaults) {
	s.span(&c.DrainTimeout, "drain-timeout", d.drainTimeout, "how long connections may live on after SIGTERM", "CONNECTION_TERMINATION_DEADLINE")
	s.text(&c.LogLevel, "log-level", "info", "off, error, warn, info, debug or trace, and by scope: info,access=debug", "LOG_LEVEL", "RUST_LOG")
	s.text(&c.LogFormat, "log-format", "text", "text (or plain) or json", "LOG_FORMAT")
	declare(s, &c.WorkerThreads, "worker-threads", d.workerThreads, parseThreads, "threads that run at once: a number, 0 for all cores, or a share such as 50%", "ZTUNNEL_WORKER_THREADS")
	s.number(&c.cpuCount, "cpu-count", 0, 0, math.MaxInt16, "cores to reckon with; 0 means those there are", "ZTUNNEL_CPU_LIMIT")
	s.number(&c.cpuLimit, "cpu-limit", 0, 0, math.MaxInt16, "most threads that the default takes; 0 means no limit", "ZTUNNEL_RESOURCE_CPU_LIMIT")
	s.number(&c.cpuRequest, "cpu-request", 0, 0, math.MaxInt16, "fewest threads that the default takes", "ZTUNNEL_RESOURCE_CPU_REQUEST")
}
