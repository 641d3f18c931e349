"""One server of each exporter as its exposition text has it: counters with their rate per second, and gauges.

Each does the same: CPU 25 % busy, memory 60 % used, 3 MB/s on disk, 2 MB/s in and 1 MB/s out, and 4 ms for a request of
the disk. What does not belong to the server (loop-back, partitions, virtual devices) is there too and counts nothing.
"""

NODE = {
    'node_cpu_seconds_total{instance="ppml0001:9100",cpu="0",mode="idle"}': 0.75,
    'node_cpu_seconds_total{instance="ppml0001:9100",cpu="0",mode="user"}': 0.25,
    'node_disk_read_bytes_total{instance="ppml0001:9100",device="sda"}': 1e6,
    'node_disk_written_bytes_total{instance="ppml0001:9100",device="sda"}': 2e6,
    'node_disk_read_bytes_total{instance="ppml0001:9100",device="dm-0"}': 1e6,
    'node_disk_read_time_seconds_total{instance="ppml0001:9100",device="sda"}': 0.2,
    'node_disk_write_time_seconds_total{instance="ppml0001:9100",device="sda"}': 0.4,
    'node_disk_reads_completed_total{instance="ppml0001:9100",device="sda"}': 50,
    'node_disk_writes_completed_total{instance="ppml0001:9100",device="sda"}': 100,
    'node_network_receive_bytes_total{instance="ppml0001:9100",device="eth0"}': 2e6,
    'node_network_receive_bytes_total{instance="ppml0001:9100",device="lo"}': 9e6,
    'node_network_transmit_bytes_total{instance="ppml0001:9100",device="eth0"}': 1e6,
}
NODE_GAUGES = {
    'node_memory_MemAvailable_bytes{instance="ppml0001:9100"}': 4e9,
    'node_memory_MemTotal_bytes{instance="ppml0001:9100"}': 10e9,
}

_W = 'instance="win01:9182"'
WINDOWS = {
    **{f'windows_cpu_time_total{{{_W},core="0,{n}",mode="idle"}}': 0.75 for n in (0, 1)},
    **{f'windows_cpu_time_total{{{_W},core="0,{n}",mode="user"}}': 0.15 for n in (0, 1)},
    **{f'windows_cpu_time_total{{{_W},core="0,{n}",mode="privileged"}}': 0.10 for n in (0, 1)},
    f'windows_logical_disk_read_bytes_total{{{_W},volume="C:"}}': 1e6,
    f'windows_logical_disk_write_bytes_total{{{_W},volume="C:"}}': 2e6,
    f'windows_logical_disk_read_bytes_total{{{_W},volume="HarddiskVolume1"}}': 5e6,
    f'windows_logical_disk_write_bytes_total{{{_W},volume="HarddiskVolume1"}}': 5e6,
    f'windows_logical_disk_read_seconds_total{{{_W},volume="C:"}}': 0.2,
    f'windows_logical_disk_write_seconds_total{{{_W},volume="C:"}}': 0.4,
    f'windows_logical_disk_reads_total{{{_W},volume="C:"}}': 50,
    f'windows_logical_disk_writes_total{{{_W},volume="C:"}}': 100,
    f'windows_net_bytes_received_total{{{_W},nic="Intel_R__Ethernet_Connection"}}': 2e6,
    f'windows_net_bytes_received_total{{{_W},nic="isatap__3F0E_"}}': 7e6,
    f'windows_net_bytes_sent_total{{{_W},nic="Intel_R__Ethernet_Connection"}}': 1e6,
}
_OLD = 'instance="win02:9182"'  # before version 0.30
WINDOWS_GAUGES = {
    f"windows_memory_available_bytes{{{_W}}}": 4e9,
    f"windows_memory_physical_total_bytes{{{_W}}}": 10e9,
    f"windows_memory_available_bytes{{{_OLD}}}": 4e9,
    f"windows_cs_physical_memory_bytes{{{_OLD}}}": 10e9,
}


def _pod(pod, container, image='"docker.io/library/shop:1"'):
    scope = f"/kubepods/burstable/pod-{pod}/{container or 'pause'}"
    return f'instance="node1",container="{container}",id="{scope}",image={image},namespace="shop",pod="{pod}"'


_WEB = [_pod("ppweb-7f9c", "app"), _pod("ppweb-7f9c", "proxy")]  # both with limits: 1 core and 2 GB in all
_BATCH = [_pod("batch-1", "job")]  # without: its node has 4 cores and 20 GB
KUBELET = {
    **{f'container_cpu_usage_seconds_total{{{labels},cpu="total"}}': 0.125 for labels in _WEB},
    **{f'container_cpu_usage_seconds_total{{{labels},cpu="total"}}': 1.0 for labels in _BATCH},
    'container_cpu_usage_seconds_total{instance="node1",container="",id="/",namespace="",pod="",cpu="total"}': 3.5,
    f'container_cpu_usage_seconds_total{{{_pod("ppweb-7f9c", "")},cpu="total"}}': 0.25,
    **{f'container_fs_reads_bytes_total{{{labels},device="/dev/sda"}}': 0.5e6 for labels in _WEB},
    **{f'container_fs_writes_bytes_total{{{labels},device="/dev/sda"}}': 1e6 for labels in _WEB},
    f'container_network_receive_bytes_total{{{_pod("ppweb-7f9c", "", chr(34) * 2)},interface="eth0"}}': 2e6,
    f'container_network_receive_bytes_total{{{_pod("ppweb-7f9c", "", chr(34) * 2)},interface="lo"}}': 6e6,
    f'container_network_transmit_bytes_total{{{_pod("ppweb-7f9c", "", chr(34) * 2)},interface="eth0"}}': 1e6,
}
KUBELET_GAUGES = {
    **{f"container_spec_cpu_quota{{{labels}}}": 50_000 for labels in _WEB},
    **{f"container_spec_cpu_period{{{labels}}}": 100_000 for labels in _WEB},
    **{f"container_spec_memory_limit_bytes{{{labels}}}": 1e9 for labels in _WEB},
    **{f"container_spec_memory_limit_bytes{{{labels}}}": 0 for labels in _BATCH},
    **{f"container_memory_working_set_bytes{{{labels}}}": 0.6e9 for labels in _WEB},
    **{f"container_memory_working_set_bytes{{{labels}}}": 12e9 for labels in _BATCH},
    **{f"container_last_seen{{{labels}}}": 1.79e9 for labels in _WEB + _BATCH},
    'machine_cpu_cores{instance="node1",machine_id="m",system_uuid="s"}': 4,
    'machine_memory_bytes{instance="node1",machine_id="m",system_uuid="s"}': 20e9,
}

_T = 'host="ppdb001"'
TELEGRAF = {
    f'diskio_read_bytes{{{_T},name="nvme0n1"}}': 1e6,
    f'diskio_write_bytes{{{_T},name="nvme0n1"}}': 2e6,
    f'diskio_read_bytes{{{_T},name="nvme0n1p1"}}': 1e6,
    f'diskio_write_bytes{{{_T},name="nvme0n1p1"}}': 2e6,
    f'diskio_read_time{{{_T},name="nvme0n1"}}': 200,
    f'diskio_write_time{{{_T},name="nvme0n1"}}': 400,
    f'diskio_reads{{{_T},name="nvme0n1"}}': 50,
    f'diskio_writes{{{_T},name="nvme0n1"}}': 100,
    f'net_bytes_recv{{{_T},interface="ens5"}}': 2e6,
    f'net_bytes_recv{{{_T},interface="all"}}': 2e6,
    f'net_bytes_sent{{{_T},interface="ens5"}}': 1e6,
}
TELEGRAF_GAUGES = {
    f'cpu_usage_idle{{{_T},cpu="cpu-total"}}': 75,
    f"mem_used_percent{{{_T}}}": 60,
}

COUNTERS = {**NODE, **WINDOWS, **KUBELET, **TELEGRAF}
GAUGES = {**NODE_GAUGES, **WINDOWS_GAUGES, **KUBELET_GAUGES, **TELEGRAF_GAUGES}


def samples(counters, gauges, times, began_at):
    """(series, value, second) of counters that began at 0 at the second of `began_at(second)`, and of gauges."""
    for series, rate in counters.items():
        yield from ((series, rate * (second - began_at(second)), second) for second in times)
    for series, value in gauges.items():
        yield from ((series, value, second) for second in times)


def open_metrics(rows):
    return "\n".join([*(f"{series} {value} {second}" for series, value, second in rows), "# EOF"]) + "\n"


def with_milliseconds(rows):
    """Prometheus text for VictoriaMetrics' import."""
    return "\n".join(f"{series} {value} {second * 1000}" for series, value, second in rows) + "\n"
