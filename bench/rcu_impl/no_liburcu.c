/* SPDX-License-Identifier: MIT */
/* Where liburcu was not found when this was built. */
#include "bench/rcu_impl/impl.h"
#include <stddef.h>

const struct bench_rcu *const bench_rcu_memb = NULL;
const struct bench_rcu *const bench_rcu_mb = NULL;
const struct bench_rcu *const bench_rcu_qsbr = NULL;
