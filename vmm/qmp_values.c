/* SPDX-License-Identifier: MIT */
/* Values in QMP's messages: arguments of commands, numbers of answers. */
#include "qmp.h"
#include <errno.h>
#include <stdint.h>

int vmm_qmp_need(json_t *args, const char *name, struct gr_error *err)
{
	if (!json_object_get(args, name)) {
		return gr_error_set(err, -EINVAL, "Parameter '%s' is missing", name);
	}
	return 0;
}

int vmm_qmp_get_string(json_t *args, const char *name, const char **ret, struct gr_error *err)
{
	json_t *value = json_object_get(args, name);

	if (!value) {
		return 0;
	}
	if (!json_is_string(value)) {
		return gr_error_set(err, -EINVAL,
				    "Invalid parameter type for '%s', expected: string", name);
	}
	*ret = json_string_value(value);
	return 0;
}

int vmm_qmp_get_u64(json_t *args, const char *name, uint64_t *ret, struct gr_error *err)
{
	json_t *value = json_object_get(args, name);

	if (!value) {
		return 0;
	}
	if (!json_is_integer(value) || json_integer_value(value) < 0) {
		return gr_error_set(err, -EINVAL,
				    "Invalid parameter type for '%s', expected: integer", name);
	}
	*ret = (uint64_t)json_integer_value(value);
	return 0;
}

json_t *vmm_qmp_u64(uint64_t value)
{
	return json_integer(value > INT64_MAX ? INT64_MAX : (json_int_t)value);
}

void vmm_qmp_set_u64(json_t *object, const char *name, uint64_t value)
{
	(void)json_object_set_new(object, name, vmm_qmp_u64(value));
}
