"""Names of disks and network interfaces whose traffic is not a server's own, as regular expressions of whole names."""

from __future__ import annotations

OTHER_DISKS = "loop.*|ram.*|sr.*|dm-.*|md.*|zram.*"  # dm and md repeat the traffic of the disks below them
# node_exporter leaves partitions out by itself; they repeat the traffic of their disk.
PARTITIONS = r"(h|s|v|xv)d[a-z]+\d+|(nvme\d+n|mmcblk)\d+p\d+"
OTHER_LINKS = "lo|veth.*|docker.*|br-.*|virbr.*|cali.*|flannel.*|cni.*|tun.*|tap.*|bond.*"
