"""leak.py SRC DST PORT MAC [TAGS]: sends a TCP SYN past every hook of the pod's own device (PACKET_QDISC_BYPASS), behind
that many VLAN tags."""
import ipaddress
import socket
import struct
import sys

SOL_PACKET, PACKET_QDISC_BYPASS = 263, 20
src, dst = ipaddress.ip_address(sys.argv[1]), ipaddress.ip_address(sys.argv[2])
port, gateway = int(sys.argv[3]), bytes.fromhex(sys.argv[4].replace(":", ""))


def checksum(data):
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def tcp(sum_):
    return struct.pack("!HHIIBBHHH", 40000, port, 1, 0, 5 << 4, 0x02, 65535, sum_, 0)


pseudo = src.packed + dst.packed + struct.pack("!II", len(tcp(0)), socket.IPPROTO_TCP)
segment = tcp(checksum(pseudo + tcp(0)))
if src.version == 4:
    header = lambda sum_: struct.pack("!BBHHHBBH", 0x45, 0, 40, 1, 0, 64, socket.IPPROTO_TCP, sum_) + src.packed + dst.packed
    kind, packet = 0x0800, header(checksum(header(0))) + segment
else:
    kind, packet = 0x86DD, struct.pack("!IHBB", 6 << 28, 20, socket.IPPROTO_TCP, 64) + src.packed + dst.packed + segment

sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
sock.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
sock.bind(("eth0", 0))
own = sock.getsockname()[4]
tags = struct.pack("!HH", 0x8100, 0) * int((sys.argv[5:] or ["0"])[0])
sock.send(gateway + own + tags + struct.pack("!H", kind) + packet)
