// SPDX-License-Identifier: Apache-2.0

package inpod

// Pods lists the pods of the table.
func (m *Manager) Pods() []Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []Status
	for _, e := range m.pods {
		all = append(all, Status{e.pod.Info, e.proxy != nil})
	}
	return all
}

// Status is a pod of the table and whether it is served.
type Status struct {
	Info
	Running bool
}

// State is the reference's word.
func (s Status) State() string {
	if s.Running {
		return "Up"
	}
	return "Pending"
}
