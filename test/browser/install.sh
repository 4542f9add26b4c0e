#!/usr/bin/env bash
# Gets what the browser tests (test/browser/README.md) need: Chromium and axe-core.
#
#   install.sh        gets both, and fails if one of them cannot be had
#   install.sh --try  the same, but quietly, within three minutes, and without failing
#   install.sh --said says loudly if one of them is missing; go test does not show what a test that passes says
#
# Chromium is installed by apt-get, if it is missing and this runs as root. axe-core is fetched by npm at
# a pinned version, compared with its checksum, and kept in the user's cache.
set -euo pipefail

version=4.14.1
checksum=e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745
cache="${XDG_CACHE_HOME:-$HOME/.cache}/keysvc-browser"
axe="$cache/axe-core-$version.js"

say() { echo "browser tests: $*" >&2; }

install_chromium() {
	if command -v chromium chromium-browser google-chrome >/dev/null; then return; fi
	if [[ -n ${KEYSVC_BROWSER:-} ]]; then return; fi # a path that the tests use
	if ! command -v apt-get >/dev/null; then
		say "Chromium is missing, and there is no apt-get: install it, or set KEYSVC_BROWSER to its path"
		return 1
	fi
	if [[ $EUID != 0 ]]; then
		say "Chromium is missing: install it as root (apt-get install chromium fonts-dejavu-core)"
		return 1
	fi
	say "installing Chromium"
	export DEBIAN_FRONTEND=noninteractive
	local log
	log=$(mktemp)
	if ! { apt-get update -q && apt-get install -y -q --no-install-recommends chromium fonts-dejavu-core; } >"$log" 2>&1; then
		tail -n 3 "$log" >&2
		rm -f "$log"
		say "Chromium could not be installed"
		return 1
	fi
	rm -f "$log"
}

fetch_axe() {
	if [[ -s $axe ]]; then return; fi
	if ! command -v npm >/dev/null; then
		say "axe-core is missing, and there is no npm to fetch it"
		return 1
	fi
	(
		folder=$(mktemp -d)
		trap 'rm -rf "$folder"' EXIT
		cd "$folder"
		npm pack --silent "axe-core@$version" >npm.log 2>&1 || {
			say "axe-core $version could not be fetched by npm"
			exit 1
		}
		echo "$checksum  axe-core-$version.tgz" | sha256sum --check --status || {
			say "axe-core $version: the file has another checksum; it is not used"
			exit 1
		}
		tar -xzf "axe-core-$version.tgz" package/axe.min.js
		mkdir -p "$cache"
		# By a rename, so that the file is there in full or not at all.
		cp package/axe.min.js "$axe.$$"
		mv "$axe.$$" "$axe"
	)
}

case "${1:-}" in
--try) timeout --signal=TERM 180 "$0" || say "not all of it is there; make browser says why, and make test skips these tests" ;;
--said)
	if [[ -s $axe ]] && { [[ -n ${KEYSVC_BROWSER:-} ]] || command -v chromium chromium-browser google-chrome >/dev/null; }; then exit 0; fi
	printf '\n%s\n' "********************************************************************************" >&2
	printf '%s\n' "THE SETTINGS SCREEN WAS NOT TESTED IN A BROWSER: Chromium or axe-core is missing." "Run \`make browser\` to get it." >&2
	printf '%s\n\n' "********************************************************************************" >&2
	;;
"")
	status=0
	install_chromium || status=1
	fetch_axe || status=1
	exit "$status"
	;;
*)
	say "the arguments are --try and --said"
	exit 2
	;;
esac
