#!/bin/sh
# Compiles the kernels and kernels_test.cpp under the sanitizers and runs them; any report fails. Usage: sanitize.sh CXX
set -eu
cd "$(dirname "$0")/../.."
cxx=${1:-c++} jobs=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2) build=build/sanitize
# As setup.py has them, but for -O3, which takes minutes here and finds no more.
common="-std=c++17 -O1 -g1 -fno-omit-frame-pointer -ffp-contract=fast -fno-math-errno -fno-trapping-math -Wall"
common="$common -Wno-psabi"
sets=base
case $(uname -m) in
  x86_64 | amd64)
    sets="base avx2 avx512"
    ;;
esac
# Thread sanitizers of older compilers want addresses where they expect them.
fixed=
setarch "$(uname -m)" -R true 2>/dev/null && fixed="setarch $(uname -m) -R"

flags_of() {
  case $1 in
    avx2) echo "-mavx2 -mfma" ;;
    avx512) echo "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mprefer-vector-width=512" ;;
  esac
}

for sanitizer in address,undefined thread; do
  # Who writes what at the same time is the same in every instruction set.
  [ $sanitizer = thread ] && sets=base
  several=
  [ "$sets" = base ] || several=-DLONGSTREAM_X86
  folder=$build/$sanitizer
  rm -rf "$folder"
  mkdir -p "$folder"
  flags="$common $several -fsanitize=$sanitizer -fno-sanitize-recover=all"
  {
    echo "$cxx $flags -c csrc/tests/kernels_test.cpp -o $folder/kernels_test.o"
    for source in csrc/*_kernels.cpp; do
      for set in $sets; do
        object=$folder/$(basename "$source" .cpp).$set.o
        echo "$cxx $flags $(flags_of "$set") -DLONGSTREAM_ISA=$set -c $source -o $object"
      done
    done
  } | xargs -P "$jobs" -I COMMAND sh -c COMMAND
  # shellcheck disable=SC2086
  $cxx $flags "$folder"/*.o -o "$folder/kernels_test" -pthread
  echo "-fsanitize=$sanitizer"
  UBSAN_OPTIONS=print_stacktrace=1 $fixed "$folder/kernels_test" $sets
done
