"""A network namespace of this process's own, with one device that leads to the router.

Linux only: unshare(2), and the ioctls of ``/dev/net/tun`` and of network devices (tuntap.rst, netdevice(7)).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import subprocess
from pathlib import Path

from encml.errors import ConfigError

DEVICE = "line0"
VNET_BYTES = 10
"""``struct virtio_net_hdr`` before every packet of the device: which checksums and segments are still to be made."""

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
_TUN_F_CSUM, _TUN_F_TSO4 = 0x01, 0x02
_SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFNETMASK = 0x8914, 0x8916, 0x891C
_IFF_UP, _IFF_RUNNING = 0x1, 0x40
_TC_SECONDS = 10.0


def address(rank: int) -> str:
    """Party ``rank``'s address on the line."""
    return f"10.77.0.{rank + 1}"


def enter() -> None:
    """Move this process, which has a single thread, into a network namespace that nobody else is in.

    Where that takes more rights than it has, into a user namespace as well. Raises ConfigError where neither may be
    made.
    """
    if not hasattr(ctypes, "CDLL") or not Path("/proc/self/ns/net").exists():
        raise ConfigError("a line needs network namespaces, which only Linux has")
    if _unshare(_CLONE_NEWNET) == 0:
        return
    user, group = os.getuid(), os.getgid()
    code = _unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
    if code:
        raise ConfigError(
            f"a line needs network namespaces, and this process may not make any ({os.strerror(code)}): run as root, "
            "or allow user namespaces (sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns)"
        )
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    except OSError as error:
        raise ConfigError(
            f"a line needs network namespaces: this process's user cannot be mapped ({error.strerror}); run as root"
        ) from None


def open_device(rank: int) -> int:
    """Make the TUN device of party ``rank`` here, up and with its address; it lives as long as the descriptor.

    Segmentation and checksums are left to whoever takes a packet (there is no wire that could need them), so that
    the router sees packets of up to 64 KiB, each of them many segments of the TCP connection. Raises ConfigError.
    """
    try:
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(
            f"a line needs TUN devices: /dev/net/tun: {error.strerror}; load the module tun, and give a container "
            "this device"
        ) from None
    try:
        fcntl.ioctl(device, _TUNSETIFF, _request(struct.pack("H", _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR)))
        fcntl.ioctl(device, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            fcntl.ioctl(control, _SIOCSIFADDR, _request(_socket_address(address(rank))))
            fcntl.ioctl(control, _SIOCSIFNETMASK, _request(_socket_address("255.255.255.0")))
            for name in (DEVICE, "lo"):
                fcntl.ioctl(control, _SIOCSIFFLAGS, _request(struct.pack("H", _IFF_UP | _IFF_RUNNING), name))
    except OSError as error:
        os.close(device)
        raise ConfigError(f"a line needs TUN devices, and this process may not make one: {error.strerror}") from None
    return device


def netem(delay: float, rate: float | None, buffer: float) -> bool:
    """Let the kernel's netem hold what the device sends for ``delay`` seconds, at ``rate`` bytes a second.

    ``buffer``: seconds of sending that wait at most. False where there is no netem, or no ``tc`` to ask for it.
    """
    limit = _packets((delay + buffer) * rate) if rate is not None else _MOST_PACKETS
    words = ["tc", "qdisc", "replace", "dev", DEVICE, "root", "netem", "limit", str(limit)]
    words += ["delay", f"{delay * 1e6:.0f}us"] + ([] if rate is None else ["rate", f"{8 * rate:.0f}bit"])
    try:
        found = subprocess.run(words, capture_output=True, timeout=_TC_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return found.returncode == 0


_MOST_PACKETS = 1_000_000


def _packets(size: float) -> int:
    return max(100, round(size / 1500))


def congestion_control() -> str:
    """The kernel's way of finding out how fast it may send on this line: cubic, bbr, ..."""
    try:
        return Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    except OSError:
        return "unknown"


def _unshare(what: int) -> int:
    library = ctypes.CDLL(None, use_errno=True)
    return ctypes.get_errno() if library.unshare(what) else 0


def _request(content: bytes, name: str = DEVICE) -> bytes:
    """``struct ifreq``."""
    return struct.pack("16s24s", name.encode(), content)


def _socket_address(text: str) -> bytes:
    return struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(text))
