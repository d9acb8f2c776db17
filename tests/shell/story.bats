#!/usr/bin/env bats
# The main job, from end to end: alice reads, bob and root do not, an administrator edits a file and that changes.

load common

@test "alice reads her item; bob, who has every Unix right, and root see it and cannot read it" {
    orders
    equal "$(as alice cat "$MNT/orders/1001.json")" '{"order": 1001, "total": "12.50"}'
    for user in bob root; do
        as "$user" ls -l "$MNT/orders" | grep -q 1001.json
        equal "$(as "$user" stat -c %s "$MNT/orders/1001.json")" 34
        fails_with "$EACCES" as "$user" cat "$MNT/orders/1001.json"
    done
}

@test "an administrator adds bob to the policy file, and his next cat works; takes him out, and it does not" {
    orders
    policy=$MNT/.kms/keys/orders/policy.json
    as carol sh -c "jq '$(adding bob)' $policy | sponge $policy"
    equal "$(as bob cat "$MNT/orders/1001.json")" '{"order": 1001, "total": "12.50"}'
    as carol sh -c "jq '$(removing bob)' $policy | sponge $policy"
    fails_with "$EACCES" as bob cat "$MNT/orders/1001.json"
    equal "$(as alice cat "$MNT/orders/1001.json")" '{"order": 1001, "total": "12.50"}'
}

@test "who loses the right loses it on a descriptor and a mapping that he still has" {
    orders
    kmsfs key add-user orders bob
    hold bob r "$MNT/orders/1001.json"
    equal "$(ask read)" '{"order": 1001, "total": "12.50"}'
    equal "$(ask map)" '{"order": 1001, "total": "12.50"}'
    kmsfs key remove-user orders bob
    [[ $(ask read) =~ ^(EACCES|ESTALE)$ ]]
    equal "$(ask touch)" SIGBUS
    equal "$(as alice cat "$MNT/orders/1001.json")" '{"order": 1001, "total": "12.50"}'
}

@test "alice, whose descriptor was open during bob's removal, reads on when she opens again" {
    orders
    kmsfs key add-user orders bob
    hold alice r "$MNT/orders/1001.json"
    kmsfs key remove-user orders bob
    answer=$(ask read)
    [[ $answer == '{"order": 1001, "total": "12.50"}' || $answer == ESTALE ]]
    equal "$(as alice cat "$MNT/orders/1001.json")" '{"order": 1001, "total": "12.50"}'
}

@test "a table that root makes has root as administrator and as no user" {
    mkdir "$MNT/vault"
    jq -e '[.Statement[] | select(.Sid == "Key administrators") | .Principal.Unix[]] == ["root"]' \
        "$MNT/.kms/keys/vault/policy.json"
    fails_with "$EACCES" touch "$MNT/vault/x"
}

@test "a table that alice makes is hers to read and to administer" {
    kmsfs policy get --store |
        jq '.Statement += [{"Sid": "Makers", "Effect": "Allow", "Principal": {"Unix": ["alice"]},
            "Action": ["kms:CreateKey", "kmsfs:CreateTable"], "Resource": "*"}]' |
        kmsfs policy put --store -
    chmod 1777 "$MNT"
    as alice mkdir "$MNT/diary"
    as alice item diary/today 'dear diary'
    equal "$(as alice cat "$MNT/diary/today")" 'dear diary'
    as alice kmsfs key add-user diary bob
    chmod 755 "$MNT/diary" && chmod 644 "$MNT/diary/today"
    equal "$(as bob cat "$MNT/diary/today")" 'dear diary'
    fails_with "$EACCES" cat "$MNT/diary/today"
    fails_with "$EACCES" as dora mkdir "$MNT/dora"
}

@test "a drop-box user adds items and reads none, her own included" {
    orders
    policy_with orders '.Statement += [{"Sid": "Drop box", "Effect": "Allow", "Principal": {"Unix": ["bob"]},
        "Action": ["kms:GenerateDataKey", "kms:Encrypt"], "Resource": "*"}]' >"$T/p.json"
    as carol kmsfs policy put orders - <"$T/p.json"
    as bob item orders/from-bob 'a complaint'
    fails_with "$EACCES" as bob cat "$MNT/orders/from-bob"
    fails_with EACCES as bob probe open + "$MNT/orders/from-bob"
    as bob sh -c "echo more >>$MNT/orders/from-bob"
    equal "$(as alice cat "$MNT/orders/from-bob")" $'a complaint\nmore'
}

@test "an explicit Deny goes before every Allow, wherever it stands" {
    orders
    kmsfs key add-user orders bob
    for where in '[$deny] + .Statement' '.Statement + [$deny]'; do
        kmsfs policy get orders >"$T/before.json"
        jq --argjson deny '{"Sid": "Not bob", "Effect": "Deny", "Principal": {"Unix": ["bob"]},
            "Action": "kms:Decrypt", "Resource": "*"}' ".Statement = $where" "$T/before.json" >"$T/p.json"
        kmsfs policy put orders "$T/p.json"
        fails_with "$EACCES" as bob cat "$MNT/orders/1001.json"
        equal "$(as alice cat "$MNT/orders/1001.json")" '{"order": 1001, "total": "12.50"}'
        kmsfs policy put orders "$T/before.json"
        as bob cat "$MNT/orders/1001.json" >/dev/null
    done
}

@test "a group in the policy means its members, and nobody else" {
    orders
    kmsfs key add-user orders group:readers
    chmod 755 "$MNT/orders" && chmod 644 "$MNT/orders/1001.json"
    equal "$(as erin cat "$MNT/orders/1001.json")" '{"order": 1001, "total": "12.50"}'
    fails_with "$EACCES" as bob cat "$MNT/orders/1001.json"
    # The group counts where the process has it, not where /etc/group lists it.
    fails_with "$EACCES" setpriv --reuid=erin --regid=erin --clear-groups cat "$MNT/orders/1001.json"
    setpriv --reuid=bob --regid=bob --groups=readers cat "$MNT/orders/1001.json"
}

@test "whoever may use the key and lacks the Unix right is stopped by Unix" {
    orders
    kmsfs key add-user orders dora 2>"$T/warning"
    grep -q 'dora may not enter or list' "$T/warning"
    fails_with "$EACCES" as dora cat "$MNT/orders/1001.json"
}

@test "the console's default key policy works as it is, with Unix names for users" {
    kmsfs key create console --admin root
    cat >"$T/console.json" <<'JSON'
{
    "Version": "2012-10-17",
    "Id": "key-consolepolicy-3",
    "Statement": [
        {
            "Sid": "Enable IAM User Permissions",
            "Effect": "Allow",
            "Principal": { "AWS": "arn:aws:iam::111122223333:root" },
            "Action": "kms:*",
            "Resource": "*"
        },
        {
            "Sid": "Allow access for Key Administrators",
            "Effect": "Allow",
            "Principal": { "AWS": "arn:aws:iam::111122223333:user/carol" },
            "Action": [
                "kms:Create*", "kms:Describe*", "kms:Enable*", "kms:List*", "kms:Put*", "kms:Update*",
                "kms:Revoke*", "kms:Disable*", "kms:Get*", "kms:Delete*", "kms:TagResource",
                "kms:UntagResource", "kms:ScheduleKeyDeletion", "kms:CancelKeyDeletion",
                "kms:RotateKeyOnDemand"
            ],
            "Resource": "*"
        },
        {
            "Sid": "Allow use of the key",
            "Effect": "Allow",
            "Principal": { "AWS": [ "arn:aws:iam::111122223333:user/alice" ] },
            "Action": [ "kms:Encrypt", "kms:Decrypt", "kms:ReEncrypt*", "kms:GenerateDataKey*", "kms:DescribeKey" ],
            "Resource": "*"
        },
        {
            "Sid": "Allow attachment of persistent resources",
            "Effect": "Allow",
            "Principal": { "AWS": [ "arn:aws:iam::111122223333:user/alice" ] },
            "Action": [ "kms:CreateGrant", "kms:ListGrants", "kms:RevokeGrant" ],
            "Resource": "*",
            "Condition": { "Bool": { "kms:GrantIsForAWSResource": "true" } }
        }
    ]
}
JSON
    kmsfs table create pasted --key console --owner alice --group finance --mode 2770
    kmsfs policy put console "$T/console.json"
    kmsfs policy get console | cmp - "$T/console.json"
    as alice item pasted/x 'as in AWS'
    equal "$(as alice cat "$MNT/pasted/x")" 'as in AWS'
    fails_with "$EACCES" as bob cat "$MNT/pasted/x"
    fails_with "$EACCES" cat "$MNT/pasted/x"
}

@test "an item tells its table apart: the context decides" {
    orders
    policy_with orders '.Statement += [{"Sid": "Public part", "Effect": "Allow", "Principal": {"Unix": ["bob"]},
        "Action": "kms:Decrypt", "Resource": "*",
        "Condition": {"StringLike": {"kms:EncryptionContext:kmsfs:item": "public/*"}}}]' >"$T/p.json"
    kmsfs policy put orders "$T/p.json"
    as alice mkdir -m 2770 "$MNT/orders/public" "$MNT/orders/secret"
    as alice item orders/public/x open
    as alice item orders/secret/x closed
    equal "$(as bob cat "$MNT/orders/public/x")" open
    fails_with "$EACCES" as bob cat "$MNT/orders/secret/x"
    fails_with "$EACCES" as bob cat "$MNT/orders/1001.json"
}
