/* SPDX-License-Identifier: MIT */
/*
 * liburcu's qsbr flavour with inlined readers. Its headers allow that to LGPL-compatible sources,
 * which this one is (MIT), and to anybody for functions of less than ten lines, which they are.
 */
#define _LGPL_SOURCE
#define URCU_API_MAP /* keep the short names after the header */
#include <urcu/urcu-qsbr.h>

#define LIBURCU_IMPL bench_rcu_qsbr
#define LIBURCU_NAME "liburcu-qsbr"
#define LIBURCU_INIT bench_nothing
#include "bench/rcu_impl/liburcu.h"
