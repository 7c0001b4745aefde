# The check of all nodes before a job starts, and who is to blame if it cannot start.
# shellcheck shell=bash disable=SC2034,SC2154

cannot_start="srun cannot start the ranks; check the options of sbatch:"

preflight() { # recipe and overrides …: returns if all nodes can be used; else requeues the job, or ends it
    local verdict=$DCR_DS_ATTEMPT/preflight left=$((3 * seconds)) waited=0 probe
    choose_port
    start "$preflight_log" --kill-on-bad-exit=0 --wait=0 -- "$python" -u -m dcr_ds.run.preflight \
        --verdict "$verdict" --seconds "$seconds" --free-gib "${DCR_DS_FREE_GIB:-5}" "$@"
    while kill -0 "$step" 2>/dev/null && ((left-- > 0)); do
        sleep 1
        [[ ! -f $verdict ]] || left=$((left < 10 ? left : 10)) # ranks that hang are ended soon after the verdict
        ((waited++ < seconds)) || has_started || break # srun waits for resources that it does not get
    done
    kill "$step" 2>/dev/null || true
    end || true
    ! stopping || requeue "asked to stop before the start"
    [[ -f $verdict ]] || find_cause >"$verdict"
    probe=$(sed -n 's/^probe //p' "$verdict")
    if [[ -n $probe ]]; then
        rm "$probe" || fail "${probe%/*} in the container is not that of the host, so the run would be lost; mount it:
DCR_DS_MOUNTS=FOLDER:FOLDER"
    fi
    mapfile -t bad < <(sed -n 's/^bad //p' "$verdict")
    case $(head -n 1 "$verdict") in
    good) ;;
    user) exit 2 ;;
    *) requeue_fault "preflight failed" 1 "${bad[@]}" ;;
    esac
}

has_started() { # whether any node has started a rank; each writes a log
    touch "$DCR_DS_ATTEMPT/looked" # network file systems read a folder again once it has changed
    compgen -G "$DCR_DS_ATTEMPT/*.log" >/dev/null
}

is_slurm_down() { # file with the messages of srun
    grep -qi 'timed out\|contact slurm controller' "$1"
}

find_cause() { # prints a verdict where rank 0 has written none; what is the same on all nodes is not a fault of a node
    local failed
    mapfile -t failed < <(sed -n 's/.*[Ll]aunch .*failed on node \([^:]*\):.*/\1/p' "$preflight_log" | sort -u)
    if ((${#failed[@]} > 0 && ${#failed[@]} < ${#nodes[@]})); then
        say "preflight: srun cannot start tasks on ${failed[*]}" >&2
        printf 'bad\n'
        printf 'bad %s\n' "${failed[@]}"
    elif ! has_started && is_slurm_down "$preflight_log"; then
        echo bad
    elif ! has_started; then
        echo user
        echo "error: $cannot_start $(tail -n 5 "$preflight_log")" >&2
    elif ! grep -q '^preflight: .* answers' "$DCR_DS_ATTEMPT"/*.log; then
        echo user
        echo "error: $python with dcr_ds does not start on any node within $seconds s (DCR_DS_PREFLIGHT_SECONDS);" \
            "check DCR_DS_PYTHON, _VENV, _CONDA, _MODULES, and --export: $(tail -q -n 1 "$DCR_DS_ATTEMPT"/*.log | sort -u | head -n 3)" >&2
    else
        say "preflight: ${nodes[0]}, the first node, gave no verdict" >&2
        printf 'bad\nbad %s\n' "${nodes[0]}"
    fi
}
