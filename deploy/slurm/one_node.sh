#!/bin/bash
# A whole Slurm on this machine, to try things on: NODES nodes (default 1), one partition, no accounting. Needs root and
# Debian's slurm-wlm and munge (apt-get install slurm-wlm munge). Its files lie in FOLDER; nothing of the system's is changed.
#   deploy/slurm/one_node.sh start FOLDER && export SLURM_CONF=FOLDER/slurm.conf       deploy/slurm/one_node.sh stop FOLDER
set -euo pipefail
verb=$1
nodes=$(seq -f node-%g "${NODES:-1}")
mkdir -p "$2"
folder=$(realpath "$2")
export SLURM_CONF=$folder/slurm.conf

start() {
    mkdir -p "$folder/state"
    chmod 755 "$folder"
    dd if=/dev/urandom of="$folder/munge.key" bs=128 count=1 status=none
    chmod 600 "$folder/munge.key"
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
        --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"
    cat >"$SLURM_CONF" <<CONF
ClusterName=one
SlurmctldHost=$(hostname -s)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd-%n.log
SlurmctldPort=16817
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
OverTimeLimit=0
KillWait=30
MinJobAge=600
MpiDefault=none
ReturnToService=2
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
CONF
    port=16818
    for node in $nodes; do
        echo "NodeName=$node NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$port CPUs=$(nproc) State=UNKNOWN" >>"$SLURM_CONF"
        mkdir -p "$folder/spool-$node"
        port=$((port + 1))
    done
    slurmctld
    for node in $nodes; do slurmd -N "$node"; done
    for _ in $(seq 60); do
        sinfo --noheader --Node --format=%t | grep -vqE "idle|mix" || return 0
        sleep 0.5
    done
    tail "$folder"/slurm*.log >&2
    return 1
}

stop() {
    for file in "$folder"/slurmd-*.pid "$folder"/slurmctld.pid "$folder"/munged.pid; do
        [ ! -e "$file" ] || kill "$(cat "$file")"
    done
}

"$verb"
