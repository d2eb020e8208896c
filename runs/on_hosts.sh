#!/usr/bin/env bash
# One training on a list of hosts that ssh reaches without a password:
#
#     runs/on_hosts.sh hosts.txt train /shared/pictures --out /shared/runs/mine --preset default
#
# hosts.txt has a name or address a line; all hosts meet at the first one, on PORT. The pictures and the run folder are on
# storage that all hosts share, and instdisc is installed on each for PYTHON. A host that is lost is done without, as long as
# MIN_HOSTS are left, the first among them: the others share its rows of the bank and go on from the last checkpoint.
#
# PYTHON (python3), PORT (29400), PROCESSES a host (gpu: one a GPU; a number), MIN_HOSTS (all), SSH (ssh -tt -q).
set -euo pipefail

if (($# < 3)) || [[ ! -r $1 ]]; then
    echo "usage: $0 HOSTS train SOURCE --out RUN …   (HOSTS: a file with one host a line)" >&2
    exit 2
fi
mapfile -t hosts < <(grep -v '^[[:space:]]*\(#\|$\)' "$1")
shift
if ((${#hosts[@]} == 0)); then
    echo "$0: the list of hosts is empty: give one name or address a line" >&2
    exit 2
fi
first=${hosts[0]}
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true' INT TERM
for host in "${hosts[@]}"; do
    # The variable: else a store for the processes, which torchrun keeps on the host of rank 0, would be lost with that host.
    words=(env TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 "${PYTHON:-python3}" -m torch.distributed.run
        --nnodes "${MIN_HOSTS:-${#hosts[@]}}:${#hosts[@]}" --nproc-per-node "${PROCESSES:-gpu}" --max-restarts 100
        --rdzv-backend c10d --rdzv-endpoint "$first:${PORT:-29400}" --rdzv-id "instdisc-$$" --local-addr "$host"
        --rdzv-conf "is_host=$([[ $host == "$first" ]] && echo 1 || echo 0)"
        -m instdisc "$@" --auto-resume)
    ${SSH:-ssh -tt -q} "$host" "cd $(printf %q "$PWD") && exec $(printf '%q ' "${words[@]}")" </dev/null &
    pids+=($!)
done
status=0
for number in "${!pids[@]}"; do
    # The first host decides; another that was lost has been done without.
    wait "${pids[$number]}" || { ((number > 0)) || status=1; echo "${hosts[$number]} has left." >&2; }
done
exit $status
