/* SPDX-License-Identifier: MIT */
/*
 * HOT and COLD: the owner alone changes its family, whenever it likes; the driver skips M1 when it
 * finds nobody HOT.
 *
 * Mirrors gr_rcu_read_lock() (the load of ctr, then the store), gr_rcu_read_lock_slow() (becoming
 * HOT), gr_rcu_park(), gr_rcu_read_unlock(), and take_census() of
 * src/rcu/grace_period.c (the driver is driver.inc). One reader with a store buffer (x86's memory
 * model); before each section it may park, stay COLD or become HOT, as it likes.
 *
 * Safety: no section uses a freed object. Liveness: the updater never sticks.
 *
 * Bounds: -DSECTIONS=n, -DGPS=n.
 *
 * Mutants: DRIVER_DEMOTES (I1: a compare-and-swap by the driver, between the owner's load and its
 * store) RISE_NO_FENCE IDLE_HOT_IS_SAFE NO_C1 NO_M1 NO_M2.
 */
#ifndef SECTIONS
#define SECTIONS 3
#endif
#ifndef GPS
#define GPS 2
#endif

#define READERS 1

chan stores = [4] of { byte }; /* the reader's store buffer: values for ctr */
bool reader_ended;
#define MOMENT(r) (len(stores) == 0)
#define ENDED(r) reader_ended

#include "driver.inc"

byte freed; /* bit n: object n */

#define OWN_CTR (len(stores) == 0 -> ctr[me] : newest) /* store forwarding */
inline store_ctr(value)
{
	atomic { stores ! value; newest = value }
}

proctype drain()
{
	byte value;

end_empty:
	do
	:: atomic { stores ? value -> ctr[0] = value; value = 0 }
	od
}

inline look_for_request()
{
	if
	:: need_qs[me] ->
		len(stores) == 0; /* an exchange drains the buffer */
		take_request()
	:: !need_qs[me]
	fi
}

proctype reader(byte me)
{
	REQUEST_LOCALS;
	byte newest = 0, seen = 0, object = 0, sections = 0;

	do
	:: sections == SECTIONS -> break
	:: sections < SECTIONS ->
		if
		:: OWN_CTR == FAMILY_HOT ->
			store_ctr(FAMILY_COLD); /* gr_rcu_park() */
			look_for_request()
		:: true
		fi;
		seen = OWN_CTR;
		if
		:: seen == FAMILY_HOT -> store_ctr(FAMILY_HOT + INSIDE) /* H1 */
		:: seen == FAMILY_COLD ->
			store_ctr(FAMILY_COLD + INSIDE);
#ifndef MUTANT_NO_C1
			len(stores) == 0 /* C1 */
#endif
		:: seen == FAMILY_COLD ->
			store_ctr(FAMILY_HOT + INSIDE);
#ifndef MUTANT_RISE_NO_FENCE
			len(stores) == 0
#endif
		fi;
		object = published + 1;
		assert(!((freed >> (object - 1)) & 1));
		object = 0;
		seen = OWN_CTR;
		store_ctr(seen & ~INSIDE); /* R1 */
		seen = 0;
		look_for_request(); /* H2 */
		sections++
	od;
	len(stores) == 0;
	reader_ended = true
}

proctype updater()
{
	DRIVER_LOCALS;
	byte g = 0;

	do
	:: g < GPS ->
		publish(g + 1);
		run_grace_period();
		atomic { freed = freed | (1 << g); g++ }
	:: g == GPS -> break
	od
}

init {
	atomic {
		ctr[0] = FAMILY_COLD;
		run drain();
		run store_buffer();
		run reader(0);
		run updater()
	}
}
