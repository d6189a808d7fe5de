// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"
)

// meshFile is where the reference's manifests mount the configuration of the mesh.
const meshFile = "./etc/istio/config/mesh"

// proxyConfig is what is used of the mesh's settings for proxies. They are defaults: flags and variables win. Keys that
// are for other proxies are no mistake.
type proxyConfig struct {
	DiscoveryAddress string            `json:"discoveryAddress"`
	ProxyAdminPort   *uint16           `json:"proxyAdminPort"`
	StatsPort        *uint16           `json:"statsPort"`
	Concurrency      *int              `json:"concurrency"`
	ProxyMetadata    map[string]string `json:"proxyMetadata"`
}

// readProxyConfig reads inline if it is there, else the file, which need not be.
func readProxyConfig(inline, file string) (proxyConfig, error) {
	var c proxyConfig
	if inline != "" {
		if err := yaml.Unmarshal([]byte(inline), &c); err != nil {
			return c, fmt.Errorf("environment PROXY_CONFIG: %w", err)
		}
		return c, nil
	}
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	var mesh struct {
		DefaultConfig proxyConfig `json:"defaultConfig"`
	}
	if err == nil {
		err = yaml.Unmarshal(text, &mesh)
	}
	if err != nil {
		return c, fmt.Errorf("configuration of the mesh %s: %w", file, err)
	}
	return mesh.DefaultConfig, nil
}

// apply puts what c says into d.
func (c proxyConfig) apply(d *defaults) error {
	if c.DiscoveryAddress != "" {
		d.xdsAddress = c.DiscoveryAddress
	}
	if c.ProxyAdminPort != nil {
		d.adminAddress = net.JoinHostPort("127.0.0.1", strconv.Itoa(int(*c.ProxyAdminPort)))
	}
	if c.StatsPort != nil {
		d.statsAddress = net.JoinHostPort("", strconv.Itoa(int(*c.StatsPort)))
	}
	if text := c.ProxyMetadata["ISTIO_META_DNS_CAPTURE"]; text != "" {
		var err error
		if d.dnsCapture, err = strconv.ParseBool(text); err != nil {
			return fmt.Errorf("proxy configuration: proxyMetadata: ISTIO_META_DNS_CAPTURE: %w", err)
		}
	}
	if c.Concurrency != nil {
		var err error
		if d.workerThreads, err = parseThreads(strconv.Itoa(*c.Concurrency)); err != nil {
			return fmt.Errorf("proxy configuration: concurrency: %w", err)
		}
	}
	return nil
}

// addTo adds proxyMetadata to the node's metadata, which wins.
func (c proxyConfig) addTo(metadata map[string]any) {
	for name, value := range c.ProxyMetadata {
		name = strings.TrimPrefix(name, "ISTIO_META_")
		if _, ok := metadata[name]; !ok {
			metadata[name] = value
		}
	}
}
