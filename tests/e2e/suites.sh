#!/bin/sh
# Runs test suites of Python directly and under `usgx run`, and compares what each single test came to. By hand: it
# takes half an hour.
#
#   tests/e2e/suites.sh USGX PYTHON [TEST...]

set -u
usgx=$1 python=$2
shift 2
[ $# -gt 0 ] || set -- test_signal test_threading test_subprocess test_posix test_os test_socket test_fcntl \
	test_selectors test_mmap test_faulthandler
results=$(mktemp -d)
differing=0

# Names and outcomes; a test's output may stand between the two.
outcomes() {
	grep -E '\.\.\. (ok|FAIL|ERROR|skipped|expected failure)' "$1" | sort
}

for test in "$@"; do
	timeout -k 5 600 "$python" -m test -v "$test" >"$results/direct" 2>&1 </dev/null
	direct=$?
	timeout -k 5 600 "$usgx" run -- "$python" -m test -v "$test" >"$results/under" 2>&1 </dev/null
	under=$?
	outcomes "$results/direct" >"$results/direct.outcomes"
	outcomes "$results/under" >"$results/under.outcomes"
	count=$(wc -l <"$results/direct.outcomes")
	if [ $direct -eq $under ] && cmp -s "$results/direct.outcomes" "$results/under.outcomes"; then
		echo "$test: $count outcomes, the same, status $direct"
	else
		echo "$test: $count outcomes, status $direct directly and $under under usgx run:"
		diff "$results/direct.outcomes" "$results/under.outcomes"
		differing=$((differing + 1))
	fi
done
rm -r "$results"
exit $((differing != 0))
