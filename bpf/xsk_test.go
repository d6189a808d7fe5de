// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sluice-mesh/sluice/internal/testutil"
)

// xsk is an AF_XDP socket in copy mode that only sends: what it sends meets no tc hook of its device. The layouts are
// those of <linux/if_xdp.h>.
type xsk struct {
	fd       int
	umem     []byte
	tx       []byte
	offsets  xdpRingOffset
	produced uint32
}

type (
	xdpRingOffset  struct{ Producer, Consumer, Desc, Flags uint64 }
	xdpMmapOffsets struct{ RX, TX, Fill, Completion xdpRingOffset }
	xdpDesc        struct {
		Addr         uint64
		Len, Options uint32
	}
)

const (
	xskFrames    = 8
	xskFrameSize = 2048
)

// newXSK binds a socket to queue 0 of the pod's eth0.
func newXSK(pod *testutil.Pod, ifindex int) (x *xsk, err error) {
	x = &xsk{}
	err = pod.Do(func() error {
		if x.fd, err = unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return fmt.Errorf("socket: %w", err)
		}
		if x.umem, err = unix.Mmap(-1, 0, xskFrames*xskFrameSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_POPULATE); err != nil {
			return fmt.Errorf("mmap umem: %w", err)
		}
		reg := unix.XDPUmemReg{Addr: uint64(uintptr(unsafe.Pointer(&x.umem[0]))), Len: uint64(len(x.umem)), Size: xskFrameSize}
		if err := setsockopt(x.fd, unix.XDP_UMEM_REG, unsafe.Pointer(&reg), unsafe.Sizeof(reg)); err != nil {
			return fmt.Errorf("register umem: %w", err)
		}
		for _, ring := range []int{unix.XDP_UMEM_FILL_RING, unix.XDP_UMEM_COMPLETION_RING, unix.XDP_TX_RING} {
			size := uint32(xskFrames)
			if err := setsockopt(x.fd, ring, unsafe.Pointer(&size), 4); err != nil {
				return fmt.Errorf("ring %d: %w", ring, err)
			}
		}
		if err := x.mapTX(); err != nil {
			return err
		}
		const needWakeup = 1 << 3
		err := unix.Bind(x.fd, &unix.SockaddrXDP{Flags: unix.XDP_COPY | needWakeup, Ifindex: uint32(ifindex)})
		if err != nil {
			return fmt.Errorf("bind: %w", err)
		}
		return nil
	})
	return x, err
}

func setsockopt(fd, opt int, value unsafe.Pointer, size uintptr) error {
	if _, _, e := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_XDP, uintptr(opt), uintptr(value), size, 0); e != 0 {
		return e
	}
	return nil
}

func (x *xsk) mapTX() error {
	var all xdpMmapOffsets
	size := uint32(unsafe.Sizeof(all))
	_, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(x.fd), unix.SOL_XDP, unix.XDP_MMAP_OFFSETS,
		uintptr(unsafe.Pointer(&all)), uintptr(unsafe.Pointer(&size)), 0)
	if e != 0 {
		return fmt.Errorf("ring offsets: %w", e)
	}
	x.offsets = all.TX
	length := int(all.TX.Desc) + xskFrames*int(unsafe.Sizeof(xdpDesc{}))
	var err error
	x.tx, err = unix.Mmap(x.fd, unix.XDP_PGOFF_TX_RING, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return fmt.Errorf("mmap ring: %w", err)
	}
	return nil
}

// send hands one frame to the kernel and has it sent.
func (x *xsk) send(data []byte) error {
	slot := x.produced % xskFrames
	copy(x.umem[slot*xskFrameSize:], data)
	desc := (*xdpDesc)(unsafe.Pointer(&x.tx[x.offsets.Desc+uint64(slot)*uint64(unsafe.Sizeof(xdpDesc{}))]))
	*desc = xdpDesc{Addr: uint64(slot) * xskFrameSize, Len: uint32(len(data))}
	x.produced++
	*(*uint32)(unsafe.Pointer(&x.tx[x.offsets.Producer])) = x.produced
	err := unix.Sendto(x.fd, nil, unix.MSG_DONTWAIT, &unix.SockaddrXDP{})
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EBUSY) {
		return nil
	}
	return err
}

func (x *xsk) close() {
	_ = unix.Close(x.fd)
	if x.tx != nil {
		_ = unix.Munmap(x.tx)
	}
	_ = unix.Munmap(x.umem)
}

// TestGuardStopsWhatXDPSocketsSend: the same SYN leaves a pod without guard, so the test can fail.
func TestGuardStopsWhatXDPSocketsSend(t *testing.T) {
	w := newWorld(t)
	unguarded := w.enrol(t, w.host.Pod(t, "unguarded"), func(c *PodConfig) { c.HostIfindexes = nil })
	guarded, server := w.enrol(t, w.host.Pod(t, "guarded")), w.host.Pod(t, "server")
	w.mesh(t, server)
	wire := sniff(t, w.host.NS, server.HostIf)
	sockets := map[*enrolled]*xsk{}
	for _, pod := range []*enrolled{guarded, unguarded} {
		x, err := newXSK(pod.Pod, pod.Ifindex(t, "eth0"))
		if err != nil {
			t.Fatal(err)
		}
		defer x.close()
		sockets[pod] = x
	}
	send := func(t *testing.T, pod *enrolled, family string) netip.AddrPort {
		f := frame{src: netip.AddrPortFrom(pod.Addr(family), 5555), dst: netip.AddrPortFrom(server.Addr(family), 80), flags: flagSYN}
		data := f.bytes()
		copy(data, macOf(t, w.host.NS, pod.HostIf))
		copy(data[macBytes:], macOf(t, pod.NS, "eth0"))
		if err := sockets[pod].send(data); err != nil {
			t.Fatal(err)
		}
		return f.src
	}
	eachFamily(t, func(t *testing.T, family string) {
		dst := netip.AddrPortFrom(server.Addr(family), 80)
		before := guarded.count(t, VerdictDropLeak)
		src := send(t, guarded, family)
		guarded.wantVerdict(t, VerdictDropLeak, before+1)
		free := send(t, unguarded, family)
		testutil.Eventually(t, 20*time.Second, func() error {
			if !wire.saw(free, dst) {
				return fmt.Errorf("%v is not on the wire: the test cannot fail", free)
			}
			return nil
		})
		if wire.saw(src, dst) {
			t.Errorf("%v went past guard", src)
		}
	})
}
